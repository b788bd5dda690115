#!/usr/bin/env bash
# SimpleITK: with slices of 5 mm, the approximate distance to an organ 50 mm away is 11 mm.
#
# SimpleITK 2.5.7. ApproximateSignedDistanceMap returns the distance of each voxel to the surface of a mask, documented
# as an approximation by chamfer distances. One expects it in mm, as that of SignedMaurerDistanceMap and
# SignedDanielssonDistanceMap, and within some per cent. But the distance is counted in voxels, whatever their size, and
# only the first one, from the surface to the next voxel, is in mm: both units are added. For voxels of 0.5 mm, it is
# nearly twice as large as in mm; with slices of 5 mm, it is a fifth along the axis of the slices. There is no argument
# for the spacing, and the documentation does not mention it. No thread about it was found; SimpleITK#1904 is about a
# crash.
#
# Seen (distances in mm from the surface of a cube of 20 voxels, along x and along z, and in its middle; in brackets
# those of SignedMaurerDistanceMap, which are to the middle of a voxel of the surface):
#   voxels         10 voxels away in x  10 voxels away in z  in the middle
#   1 1 1           8.8 (10)             8.8 (10)            -8.8 (-9)
#   0.5 0.5 0.5     8.6 (5)              8.6 (5)             -8.6 (-4.5)
#   1 1 5           8.8 (10)            10.8 (50)            -8.8 (-9)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

mask = np.zeros((40, 40, 40), np.uint8)
mask[10:30, 10:30, 10:30] = 1
places = (20, 20, 0), (0, 20, 20), (20, 20, 20)
expected = {(1, 1, 1): (8.8, 8.8, -8.8), (0.5, 0.5, 0.5): (8.6, 8.6, -8.6), (1, 1, 5): (8.8, 10.8, -8.8)}
for spacing, values in expected.items():
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(spacing)
    approximate = sitk.GetArrayFromImage(sitk.ApproximateSignedDistanceMap(image, 1, 0))
    maurer = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))
    outside = ndimage.distance_transform_edt(mask == 0, sampling=spacing[::-1])
    seen = [round(float(approximate[place]), 1) for place in places]
    exact = [round(float(maurer[place]), 1) for place in places]
    print(spacing, "approximate", seen, "Maurer", exact, "scipy outside", [outside[place] for place in places[:2]])
    assert np.allclose(exact[:2], [outside[place] for place in places[:2]], atol=0.1)
    assert np.allclose(seen, values, atol=0.11), "the behaviour has changed"
END
