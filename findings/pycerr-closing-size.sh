#!/usr/bin/env bash
# pyCERR: a closing with a sphere of 0.5 cm joins structures that are 1 cm apart, and a disk is a square.
#
# pyCERR 2.5.1, scipy 1.17.1. closeMask(mask, resolution, size, shape) closes a mask with a structuring element whose
# "size in cm" is documented for all shapes, "flat", "disk" and "sphere". For "flat", the default, a box of the size, it
# is. But for "sphere" and "disk", the same number of voxels is taken for the radius (createStructuringElement), so that
# the element has twice the size and one more voxel. And the disk is a square: its points are compared with the square
# of the radius, after they were divided by the radius, so that all corners belong to it. So gaps of up to 1 cm are
# closed. No thread about it was found; pyCERR#79 introduced the shapes.
#
# Seen (structuring elements of 0.5 cm for voxels of 0.1 cm; widest gap between two plates that a closing fills):
#   shape    element       voxels  gap
#   flat      5 x 5 x 5    125     0.4 cm
#   disk     11 x 11       121     1.0 cm  (a disk with a diameter of 5: 21 voxels; of 11: 97)
#   sphere   11 x 11 x 11  515     1.0 cm  (a sphere with a diameter of 5: 81 voxels)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 SimpleITK==2.5.7 pyCERR==2.5.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
from cerr.utils import mask
from scipy import ndimage

resolution = [0.1, 0.1, 0.1]


def plates(gap):
    volume = np.zeros((60, 60, 20), bool)
    volume[10:25, 10:50, 2:18] = volume[25 + gap : 45, 10:50, 2:18] = True
    return volume


def widest(close):
    """Return the widest gap, in voxels, whose middle a closing fills."""
    return max(gap for gap in range(1, 15) if close(plates(gap))[25 + gap // 2, 30, 10])


distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij")), axis=0)
sphere = distance <= 2.5
true = widest(lambda volume: ndimage.binary_closing(volume, sphere))
print("a sphere with a diameter of 5 voxels:", sphere.sum(), "voxels, widest gap", true)
assert true == 4
expected = {"flat": ((5, 5, 5), 125, 4), "disk": ((11, 11), 121, 10), "sphere": ((11, 11, 11), 515, 10)}
for shape, values in expected.items():
    element = mask.createStructuringElement(0.5, resolution, shape=shape)
    gap = widest(lambda volume, shape=shape: mask.closeMask(volume, resolution, 0.5, shape=shape))
    print(shape, element.shape, "voxels", element.sum(), "widest gap", gap)
    assert (element.shape, element.sum(), gap) == values, "the behaviour has changed"
END
