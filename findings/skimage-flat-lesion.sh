#!/usr/bin/env bash
# For a lesion in a single slice, solidity is infinite and the diameter cannot be measured.
#
# scikit-image 0.26.0. With slices of 5 mm, many lesions are in one slice. regionprops of a 3-D label uses the hull of the
# voxels' centres and corners. For a flat object this fails, and the results are those of an empty hull: area_convex is 0,
# solidity (at most 1 by definition) is infinite, and feret_diameter_max raises "Surface level must be within volume data
# range". The only hint is a warning. The same lesion in two slices has a solidity of 1.
#
# Seen (10 x 10 voxels, 5 x 1 x 1 mm):
#   slices  area_convex  solidity  feret_diameter_max
#   1       0            inf       ValueError
#   2       1000 mm3     1         16.2 mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scikit-image==0.26.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
from skimage.measure import regionprops

for slices in (1, 2):
    label = np.zeros((6, 20, 20), int)
    label[2 : 2 + slices, 5:15, 5:15] = 1
    region = regionprops(label, spacing=(5, 1, 1))[0]
    try:
        diameter = region.feret_diameter_max
    except ValueError as error:
        diameter = error
    print(slices, region.area, region.area_convex, region.solidity, diameter)
    assert np.isinf(region.solidity) == isinstance(diameter, ValueError) == (slices == 1), "the behaviour has changed"
END
