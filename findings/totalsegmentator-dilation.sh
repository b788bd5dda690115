#!/usr/bin/env bash
# TotalSegmentator: a dilation by 2 mm grows a vertebra on one side only; with slices of 5 mm, by 5 mm or not at all.
#
# TotalSegmentator 2.18.0, scipy 1.17.1. dilate_vertebrae_labels grows labels by a margin in mm: by 3 mm in the task
# vertebrae_pp, and by 2 mm on the voxels of the CT in vertebrae_pp_refined. One expects the same growth on both sides
# of each axis, to all voxels within the margin. But the ellipsoid is sampled at -r, -r + 1, ..., where r is the margin
# in voxels. Unless r is whole, none of these points is the centre, and the filter takes one beside it: the label grows
# more towards lower indices, and is displaced. If r is less than 1 along one axis, the ellipsoid can be a single voxel,
# that of the slice below, or empty. Voxels of 1 mm are right. The docstrings promise an ellipsoid in physical space.
#
# Seen (a block of 30 x 30 x 20 mm, margin of 2 mm; growth in mm at the low and high side of each axis):
#                         low side          high side         expected (both)
#   1 x 1 x 1 mm          2     2     2     2    2    2       2    2    2
#   0.8 x 0.8 x 0.8 mm    1.6   1.6   1.6   0.8  0.8  0.8     1.6  1.6  1.6
#   1.5 x 1.5 x 1.5 mm    1.5   1.5   1.5   0    0    0       1.5  1.5  1.5
#   1 x 1 x 5 mm          0     0     5     0    0    0       2    2    0
#   0.75 x 0.75 x 5 mm    0     0     0     0    0    0       1.5  1.5  0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 tqdm==4.70.1
"$folder/venv/bin/pip" install -q --no-deps TotalSegmentator==2.18.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
from scipy import ndimage
from totalsegmentator.postprocessing import dilate_vertebrae_labels


def growth(before, after, spacing):
    before, after = np.argwhere(before), np.argwhere(after)
    low = (before.min(0) - after.min(0)) * spacing
    high = (after.max(0) - before.max(0)) * spacing
    return low.tolist(), high.tolist()


seen = {}
for spacing in ((1, 1, 1), (0.8, 0.8, 0.8), (1.5, 1.5, 1.5), (1, 1, 5), (0.75, 0.75, 5)):
    size = np.round(np.array((30, 30, 20)) / spacing).astype(int)
    vertebra = np.pad(np.ones(size, np.uint8), 10)
    dilated = dilate_vertebrae_labels(vertebra, {1: "vertebrae_L5"}, spacing, dilation_mm=2)
    within = ndimage.distance_transform_edt(vertebra == 0, sampling=spacing) <= 2
    seen[spacing] = growth(vertebra, dilated, spacing)
    expected = growth(vertebra, within, spacing)
    print(spacing, "low, high", *seen[spacing], "expected", *expected)
    assert expected[0] == expected[1]
assert np.allclose(seen[1, 1, 1], 2)
assert np.allclose(seen[0.8, 0.8, 0.8], [[1.6] * 3, [0.8] * 3]), "the behaviour has changed"
assert np.allclose(seen[1.5, 1.5, 1.5], [[1.5] * 3, [0] * 3]), "the behaviour has changed"
assert np.allclose(seen[1, 1, 5], [[0, 0, 5], [0, 0, 0]]), "the behaviour has changed"
assert np.allclose(seen[0.75, 0.75, 5], 0), "the behaviour has changed"
END
