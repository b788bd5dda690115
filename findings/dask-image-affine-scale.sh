#!/usr/bin/env bash
# dask-image: with one scale for each axis, a resampled lesion disappears or is elsewhere, even with scales of 1.
#
# dask-image 2026.5.0, dask 2026.8.0, scipy 1.17.1. The matrix of affine_transform is documented as an array of shape
# (ndim,), (ndim, ndim) and others. As in scipy, one scale for each axis is the usual form for a resampling without
# rotation. But the place of each chunk of the output is the product of the matrix and the chunk's first voxel, which
# for a vector is a sum over the axes: all chunks but the first one are read elsewhere, mostly outside of the volume.
# Since a chunk has the size of the input by default, this is also the case without output_chunks if the output is
# larger than the input. There is no warning. The same scales as a diagonal matrix give what scipy gives. No thread
# about it was found.
#
# Seen (24 x 60 x 60 voxels, linear interpolation; voxels that differ from scipy; a lesion's voxels and its centre):
#   scales       chunks        wrong  lesion                  by scipy
#   1    1    1  12 x 30 x 30  87 %   0                       448 at 18, 39.5, 39.5
#   0.2  1    1  (default)     79 %   2240 at 90, 23.5, 23.5  2240 at 90, 39.5, 39.5
#   1    2    2  12 x 30 x 30  48 %   112 at 18, 13.5, 13.5   112 at 18, 19.5, 19.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 dask==2026.8.0 dask-image==2026.5.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import dask.array
import numpy as np
from dask_image.ndinterp import affine_transform
from scipy import ndimage

scan = 50 + np.mgrid[:24, :60, :60].sum(0) / 10.0
lesion = np.zeros(scan.shape)
lesion[15:22, 36:44, 36:44] = 1


def describe(mask):
    centre = np.round(ndimage.center_of_mass(mask), 1).tolist() if mask.any() else []
    return round(mask.sum()), centre


def compare(scales, chunks, expected):
    shape = tuple(round((size - 1) / scale) for size, scale in zip(scan.shape, scales))
    seen, true = [], []
    for volume in scan, lesion:
        lazy = dask.array.from_array(volume, chunks=(12, 30, 30))
        arguments = {"output_shape": shape, "order": 1}
        true.append(ndimage.affine_transform(volume, scales, **arguments))
        seen.append(affine_transform(lazy, scales, output_chunks=chunks, **arguments).compute())
        matrix = affine_transform(lazy, np.diag(scales), output_chunks=chunks, **arguments).compute()
        assert np.allclose(matrix, true[-1]), "the behaviour has changed"
    wrong = round((abs(seen[0] - true[0]) > 1e-6).mean(), 3)
    result = wrong, describe(seen[1]), describe(true[1])
    print("scales", scales, "chunks", chunks, "wrong", wrong, "lesion", result[1], "by scipy", result[2])
    assert result == expected, "the behaviour has changed"


compare((1.0, 1, 1), (12, 30, 30), (0.865, (0, []), (448, [18, 39.5, 39.5])))
compare((0.2, 1, 1), None, (0.791, (2240, [90, 23.5, 23.5]), (2240, [90, 39.5, 39.5])))
compare((1.0, 2, 2), (12, 30, 30), (0.478, (112, [18, 13.5, 13.5]), (112, [18, 19.5, 19.5])))
END
