#!/usr/bin/env bash
# ANTsPy: the largest component of a small lesion is the whole volume.
#
# antspyx 0.6.3. iMath(mask, "GetLargestComponent") has a smallest size, between 28 and 64 voxels, which the docstring of
# ants.iMath does not mention. If no component is as large, the result is neither empty nor the mask: every voxel of the
# volume is 1. A lesion of 27 voxels in a volume of 27,000 gets a thousand times its volume.
# With 1 as the third argument the result is right.
#
# Seen (voxels of the mask, of the result, and with a smallest size of 1):
#   27  27000  27
#   64  64     64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q antspyx==0.6.3
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import ants
import numpy as np

for side, expected in ((3, 27_000), (4, 64)):
    mask = np.zeros((30, 30, 30), np.float32)
    mask[10 : 10 + side, 10 : 10 + side, 10 : 10 + side] = 1
    image = ants.from_numpy(mask)
    result = int(ants.iMath(image, "GetLargestComponent").sum())
    of_one = int(ants.iMath(image, "GetLargestComponent", 1).sum())
    print(side**3, result, of_one)
    assert (result, of_one) == (expected, side**3), "the behaviour has changed"
END
