#!/usr/bin/env bash
# Resize: labels are shifted relative to their image by up to half a coarse voxel.
#
# monai 1.6.1, torch 2.13.0 (the same with 2.14.1). Every voxel of a volume contains its own position in mm. After Resize,
# its value should be the position that the new affine gives. For images (area, trilinear) it is exactly this. For labels
# (nearest), the value comes from the first corner of the block, but the affine is that of its centre: labels are shifted
# by 0.5 voxels at half the size and by 1.5 at a quarter, always in the same direction. "nearest-exact" is off by at most
# half a fine voxel, which cannot be avoided for even factors.
#
# Seen (value minus position, fine voxels, at half and at a quarter of the size):
#   area           0.0   0.0
#   trilinear      0.0   0.0
#   nearest       -0.5  -1.5
#   nearest-exact  0.5   0.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.data import MetaTensor
from monai.transforms import Resize

position = torch.arange(32.0)[None, :, None, None].repeat(1, 1, 8, 8)
expected = {"area": (0, 0), "trilinear": (0, 0), "nearest": (-0.5, -1.5), "nearest-exact": (0.5, 0.5)}
for mode, offsets in expected.items():
    seen = []
    for factor in (2, 4):
        small = Resize((32 // factor, 8, 8), mode=mode)(MetaTensor(position, affine=torch.eye(4)))
        where = small.affine[0, 0] * torch.arange(32 // factor) + small.affine[0, 3]
        (offset,) = (small[0, :, 0, 0] - where).unique().tolist()
        seen.append(offset)
    print(mode, *seen)
    assert tuple(seen) == offsets, "the behaviour has changed"
END
