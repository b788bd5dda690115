#!/usr/bin/env bash
# mahotas: a shift by nothing or a zoom by 1 moves a volume by a voxel along each axis, and nothing is interpolated.
#
# mahotas 1.4.19, scipy 1.17.1. interpolate.shift and interpolate.zoom are documented as spline interpolation of the
# requested order, with arguments as in scipy. One expects that a shift by 0 changes nothing and that a shift by 0.5
# is between two voxels. But the result is one voxel towards the start of each axis, also of those that are not
# shifted, and the rest of the shift is rounded up: for all orders, each value is one of the input. The first slice,
# row and column are lost, and zeros follow the last ones. A zoom by 2 is as far off in voxels of the result, and
# repeats slices instead of interpolating between them; a mask that is zoomed by 3 is too large. It is the same in
# 2-D, and in version 1.4.13. No thread about it was found.
#
# Seen (a cube of 4 voxels whose centre is 9.5 along each axis; centre along the first two axes; linear interpolation):
#   shift along the first axis   0          0.5        1          2.25        by scipy  9.5, 10, 10.5, 11.75
#   mahotas                      8.5, 8.5   9.5, 8.5   9.5, 8.5   11.5, 8.5             and 9.5
#   zoom                         1          2          3                     by scipy  9.5, 19.5, 29.5
#   mahotas                      8.5        18.5       28
#   a ramp of 0 to 19, zoomed by 2: 1 1 1 2 2 3 3 ... 19 19 0; shifted by 0: 1 2 3 ... 19 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 mahotas==1.4.19
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import mahotas.interpolate
import numpy as np
from scipy import ndimage

cube = np.zeros((20, 20, 20))
cube[8:12, 8:12, 8:12] = 1
ramp = np.arange(20.0)[:, None, None] * np.ones((1, 20, 20))


def centre(volume):
    return np.round(ndimage.center_of_mass(volume), 2)[:2].tolist()


for shift, expected in ((0, 8.5), (0.5, 9.5), (1, 9.5), (2.25, 11.5)):
    shifts = (shift, 0, 0)
    for order in 0, 1, 3:
        seen = mahotas.interpolate.shift(cube, shifts, order=order)
        assert np.unique(seen.round(9)).tolist() == [0, 1], "the behaviour has changed"
        assert centre(seen) == [expected, 8.5], "the behaviour has changed"
    true = centre(ndimage.shift(cube, shifts, order=1))
    print("shift", shift, "centre", centre(seen), "by scipy", true)
    assert true == [9.5 + shift, 9.5]

for factor, expected in ((1, 8.5), (2, 18.5), (3, 28)):
    seen = mahotas.interpolate.zoom(cube, factor, order=1)
    true = centre(ndimage.zoom(cube, factor, order=1))
    print("zoom", factor, "centre", centre(seen), "by scipy", true, "voxels", seen.sum(), "expected", 64 * factor**3)
    assert centre(seen) == [expected, expected] and true == [10 * factor - 0.5] * 2, "the behaviour has changed"
assert seen.sum() == 13**3, "the behaviour has changed"

zoomed = mahotas.interpolate.zoom(ramp, 2, order=1)[:, 5, 5]
shifted = mahotas.interpolate.shift(ramp, (0, 0, 0), order=1)[:, 5, 5]
print("ramp, zoomed", zoomed.tolist(), "shifted by 0", shifted.tolist())
assert zoomed[:6].tolist() == [1, 1, 1, 2, 2, 3] and zoomed[-3:].tolist() == [19, 19, 0], "the behaviour has changed"
assert shifted.tolist() == [*range(1, 20), 0], "the behaviour has changed"
END
