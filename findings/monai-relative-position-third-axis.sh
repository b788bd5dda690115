#!/usr/bin/env bash
# MONAI: relative positions along the third axis are read at the place along the second.
#
# monai 1.6.1, torch 2.13.0. add_decomposed_rel_pos, which SABlock(use_rel_pos="decomposed") and so ViT-like networks
# call in 3-D, adds a table of distances for each axis. On a cube the bias of the third axis does not depend on where the
# query lies along the third axis but on where it lies along the second: with tables of 0 but the third, which holds the
# distance itself, a query at depth 0 sees its key at depth 3 with the distance 0 from one row and -3 from another.
# Where the second and the third axis differ in size it raises: ViTs over thick slices cannot be built this way.
#
# Seen (distance along the third axis from depth 0 to 3, of queries in row 0, 1, 2 and 3; what it raises for 4 x 4 x 3):
#   [-3.0, -2.0, -1.0, 0.0]
#   RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q monai==1.6.1 torch==2.13.0 einops
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from monai.networks.blocks.attention_utils import add_decomposed_rel_pos


def along_third(sizes):
    tokens = sizes[0] * sizes[1] * sizes[2]
    tables = [torch.zeros(2 * size - 1, 1) for size in sizes]
    tables[2] = torch.arange(1.0 - sizes[2], sizes[2])[:, None]  # query less key
    return add_decomposed_rel_pos(torch.zeros(1, tokens, tokens), torch.ones(1, tokens, 1), tables, sizes, sizes)


bias = along_third((4, 4, 4)).view(4, 4, 4, 4, 4, 4)
found = [bias[0, row, 0, 0, row, 3].item() for row in range(4)]  # right: -3 in every row
print(found)
assert found == [-3.0, -2.0, -1.0, 0.0], "the behaviour has changed"
try:
    along_third((4, 4, 3))
except RuntimeError as error:
    print(type(error).__name__)
else:
    raise AssertionError("the behaviour has changed")
END
