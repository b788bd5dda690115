#!/usr/bin/env bash
# Without a lesion, the distance to the nearest lesion is finite, and measured from the array's first corner.
#
# scipy 1.17.1, edt 3.1.2. distance_transform_edt(~lesion, sampling=spacing) is the usual distance map of boundary losses
# and surface metrics. Without a lesion, the distance is not defined. scipy gives the distance from a voxel that does not
# exist, one slice before the volume at index (-1, 0, 0), without a warning. The map depends on the order of the axes. edt
# gives infinity.
#
# Seen (along the first axis of an empty volume of 4 x 3 x 3 voxels, slices of 5 mm):
#   scipy                              5 10 15 20
#   scipy, with transposed axes        1 5.1 10.05 15.03
#   edt                                inf inf inf inf
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 edt==3.1.2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import edt
import numpy as np
from scipy import ndimage

spacing = (5.0, 1.0, 1.0)
lesion = np.zeros((4, 3, 3), bool)
distance = ndimage.distance_transform_edt(~lesion, sampling=spacing)
other = edt.edt(np.ascontiguousarray(~lesion), anisotropy=spacing)
print("scipy", distance[:, 0, 0])
print("edt", other[:, 0, 0])
i, j, k = np.indices(lesion.shape)
assert np.allclose(distance, np.sqrt((5 * (i + 1)) ** 2 + j**2 + k**2)), "the behaviour has changed"
assert np.isinf(other).all(), "the behaviour has changed"
turned = ndimage.distance_transform_edt(~lesion.T, sampling=spacing[::-1]).T
print("scipy, with transposed axes", turned[:, 0, 0])
assert not np.array_equal(turned, distance), "the behaviour has changed"
END
