#!/usr/bin/env bash
# positional-encodings: with 8 channels, all slices of a volume have the same encoding.
#
# positional-encodings 6.0.3, torch 2.13.0. PositionalEncoding3D gives each voxel or token a vector of sines and cosines
# of its position. The readme says not to worry if the number of channels is not divisible by 6, since the necessary
# padding is taken care of. One expects each position to have its own encoding. But each axis gets a sixth of the
# channels, rounded up, twice, and what is too much is cut off at the end: the third axis loses all of its channels if
# there are 2, 4 or 8, as in a narrow head, and two of three pairs if there are 14. With 2 channels, the second axis has
# none either. There is no warning. The class for TensorFlow was not tried. No thread about it was found.
#
# Seen (channels that differ between two positions along each axis; encodings of 6 x 7 x 9 = 378 positions that differ):
#   channels  axis 1  axis 2  axis 3  different encodings
#   2         2       0       0       6
#   4         2       2       0       42
#   8         4       4       0       42
#   14        6       6       2       378
#   48        16      16      16      378
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 positional-encodings==6.0.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import torch
from positional_encodings.torch_encodings import PositionalEncoding3D

print("positional-encodings", version("positional-encodings"), "torch", torch.__version__)
expected = {2: (2, 0, 0, 6), 4: (2, 2, 0, 42), 8: (4, 4, 0, 42), 14: (6, 6, 2, 378), 48: (16, 16, 16, 378)}
for channels, seen in expected.items():
    encoding = PositionalEncoding3D(channels)(torch.zeros(1, 6, 7, 9, channels))[0]
    per_axis = [int((encoding.diff(dim=axis) != 0).any(axis).any(0).any(0).sum()) for axis in range(3)]
    different = len(torch.unique(encoding.flatten(0, 2), dim=0))
    print(channels, "channels, per axis", per_axis, "different", different)
    assert encoding.shape == (6, 7, 9, channels)
    assert (*per_axis, different) == seen, "the behaviour has changed"
END
