#!/usr/bin/env bash
# MONAI: the relative position bias of the third axis uses the query's position along the second axis.
#
# monai 1.6.1, torch 2.13.0. add_decomposed_rel_pos, which SABlock(use_rel_pos="decomposed") and therefore ViT-like
# networks call in 3-D, adds a table of distances for each axis. On a cube, the bias of the third axis does not depend on
# the query's position along the third axis, but on its position along the second. In this example, the third table
# contains the distance itself, and the others contain 0. For a query at depth 0 and a key at depth 3, the distance is 0
# in one row and -3 in another. If the second and third axis have different sizes, an error is raised, so ViTs over thick
# slices cannot be built in this way.
#
# Seen (distance along the third axis from depth 0 to 3, for queries in rows 0, 1, 2 and 3; the error for 4 x 4 x 3):
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
