#!/usr/bin/env bash
# med-imagetools: a zoom by 2 halves the lesion, a zoom by 0.5 doubles it, and both move it by half a voxel or more.
#
# med-imagetools 2.16.0, SimpleITK 2.5.7, scipy 1.17.1. zoom and the transform Zoom rescale a scan by a factor in its
# own field of view. One expects that things are larger for a factor of 2, as in scipy. But the factor becomes the scale
# of a transform from the result to the scan, so that they are smaller. It is the same for a factor for each axis. And
# the fixed point is half a voxel from the middle of the scan, as the index of the middle is taken as size / 2: a lesion
# in the middle moves by 0.5 voxels for 2, and by 1 voxel the other way for 0.5. An augmentation that draws factors of
# more than 1 in order to enlarge makes all lesions smaller. No thread about it was found.
#
# Seen (a cube of 10 voxels in the middle of 40; voxels, and the middle along each axis, which is 19.5 in the scan):
#   factor  voxels  middle  voxels by scipy
#   1       1000    19.5    1000
#   2        125    20.0    8000
#   0.5     8000    18.5     125
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7 med-imagetools==2.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
import SimpleITK as sitk
from imgtools.transforms.functional import zoom
from scipy import ndimage

print("med-imagetools", version("med-imagetools"))
lesion = np.zeros((40, 40, 40), np.float32)
lesion[15:25, 15:25, 15:25] = 1
scan = sitk.GetImageFromArray(lesion)
for factor, voxels, middle in ((1.0, 1000, 19.5), (2.0, 125, 20.0), (0.5, 8000, 18.5)):
    zoomed = sitk.GetArrayFromImage(zoom(scan, factor, interpolation="nearest"))
    per_axis = sitk.GetArrayFromImage(zoom(scan, [factor] * 3, interpolation="nearest"))
    plain = ndimage.zoom(lesion, factor, order=0, grid_mode=True, mode="nearest")
    centre = np.argwhere(zoomed > 0.5).mean(0)
    print("factor", factor, "voxels", zoomed.sum(), "middle", centre, "by scipy", plain.sum())
    assert plain.sum() == 1000 * factor**3 and zoomed.shape == lesion.shape and np.array_equal(zoomed, per_axis)
    assert zoomed.sum() == voxels and (centre == middle).all(), "the behaviour has changed"
END
