#!/usr/bin/env bash
# fastmorph: a spherical opening by one voxel makes lesions larger, and a single voxel becomes seven.
#
# fastmorph 1.10.0, edt 3.1.2. spherical_open and spherical_close are documented as morphological opening and closing
# by a radius; an opening never adds voxels, and what is smaller than the ball is gone. But the erosion keeps voxels
# whose distance from the background is exactly the radius, and the distance is from centre to centre: voxels at the
# surface have a distance of one voxel. So an erosion by the default radius of 1 does nothing, the opening is a
# dilation, and so is the closing. For other radii that are distances on the grid (2, 3, sqrt(2) and so on), the
# erosion is less than the dilation, and the opening and the closing still grow. In between, as with 1.5, all is
# right. The documentation calls the range "inclusive"; the erosion then has to be strict. No thread about it was
# found.
#
# Seen (voxels of a ball of 4169 voxels; in brackets, with the same ball as structuring element in scipy):
#   radius  erosion      dilation     opening      closing
#   1       4169 (3191)  5287 (5287)  5287 (4145)  5287 (4169)
#   1.5     2729 (2729)  5995 (5995)  4115 (4115)  4169 (4169)
#   2       2529 (2313)  6721 (6721)  4385 (4121)  4385 (4169)
#   3       1671 (1431)  8955 (8955)  4505 (4025)  4513 (4169)
#   opening of a single voxel by 1: 7 (0); with voxels of 0.5 mm and a radius of 0.5 mm: 7 (0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 edt==3.1.2 fill-voids==2.1.2 \
    connected-components-3d==4.1.1 fastremap==1.21.0 packaging==26.4 fastmorph==1.10.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import fastmorph
import numpy as np
from scipy import ndimage

z, y, x = np.mgrid[-20:21, -20:21, -20:21]
square = z**2 + y**2 + x**2
organ = square <= 10**2
names = "erosion", "dilation", "opening", "closing"
seen_by = fastmorph.spherical_erode, fastmorph.spherical_dilate, fastmorph.spherical_open, fastmorph.spherical_close
true_by = ndimage.binary_erosion, ndimage.binary_dilation, ndimage.binary_opening, ndimage.binary_closing
expected = {
    1: (4169, 5287, 5287, 5287),
    1.5: (2729, 5995, 4115, 4169),
    2: (2529, 6721, 4385, 4385),
    3: (1671, 8955, 4505, 4513),
}
for radius, counts in expected.items():
    element = square[17:24, 17:24, 17:24] <= radius**2
    seen = [int(function(organ, radius).sum()) for function in seen_by]
    true = [int(function(organ, element).sum()) for function in true_by]
    print("radius", radius, *(f"{name} {a} ({b})," for name, a, b in zip(names, seen, true)))
    assert tuple(seen) == counts, "the behaviour has changed"
    assert (seen == true) == (radius == 1.5), "the behaviour has changed"
    labels = fastmorph.spherical_open(organ * np.uint8(3), radius)
    assert (labels == 3).sum() == seen[2], "the behaviour has changed"

voxel = square == 0
opened = fastmorph.spherical_open(voxel).sum(), fastmorph.spherical_open(voxel, 0.5, 1, (0.5, 0.5, 0.5)).sum()
print("a single voxel", *opened, "expected", ndimage.binary_opening(voxel).sum())
assert opened == (7, 7) and not ndimage.binary_opening(voxel).any(), "the behaviour has changed"
END
