#!/usr/bin/env bash
# sitkLabelGaussian: a lesion in a single slice disappears, even on its own grid.
#
# SimpleITK 2.5.7. sitkLabelGaussian is the interpolator for label images that SimpleITK offers besides nearest
# neighbour and sitkLabelLinear. One expects that a resampling onto the same grid changes nothing, as with the other
# two. sitkLabelGaussian also smooths, with a sigma of 0.8 voxels along each axis, whatever their size. A label that is
# one voxel thick gets less than half of the weight, so all of it becomes background: a lesion of 20 x 20 mm in a slice
# of 5 mm, also if only the in-plane spacing changes. Larger objects lose their corners.
#
# Seen (voxels before, and after a resampling onto the same grid):
#                                nearest  LabelLinear  LabelGaussian
#   one slice, 20 x 20     400   400      400          0
#   two slices             800   800      800          792
#   a vessel of 2 x 1      40    40       40           0
#   3 x 3 x 3              27    27       27           19
#   one slice, 2 mm pixels (4 mm2 each) instead of 1 mm: 100, 100 and 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk

interpolators = sitk.sitkNearestNeighbor, sitk.sitkLabelLinear, sitk.sitkLabelGaussian


def image(depth, height, width):
    label = np.zeros((12, 40, 40), np.uint8)
    label[5 : 5 + depth, 10 : 10 + height, 10 : 10 + width] = 1
    result = sitk.GetImageFromArray(label)
    result.SetSpacing((1, 1, 5))
    return result


def voxels(label, grid):
    resampled = (sitk.Resample(label, grid, sitk.Transform(), interpolator) for interpolator in interpolators)
    return [int(sitk.GetArrayViewFromImage(result).sum()) for result in resampled]


seen = []
for size in ((1, 20, 20), (2, 20, 20), (2, 1, 20), (3, 3, 3)):
    label = image(*size)
    seen.append(voxels(label, label))
    print(size, int(np.prod(size)), *seen[-1])
    assert seen[-1][:2] == [np.prod(size)] * 2
coarse = sitk.Image([20, 20, 12], sitk.sitkUInt8)
coarse.SetSpacing((2, 2, 5))
coarse.SetOrigin((0.5, 0.5, 0))
lesion = voxels(image(1, 20, 20), coarse)
print("2 mm pixels", *lesion)
assert lesion == [100, 100, 0], "the behaviour has changed"
assert [numbers[2] for numbers in seen] == [0, 792, 0, 19], "the behaviour has changed"
END
