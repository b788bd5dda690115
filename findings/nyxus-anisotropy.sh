#!/usr/bin/env bash
# Nyxus: with voxels of 1 x 1 x 5, the mean of a lesion of 51 to 69 is 300, and its standard deviation is 537.
#
# nyxus 0.11.0. Nyxus3D reads NIfTI without its voxel size and has anisotropy_x, anisotropy_y and anisotropy_z,
# documented as scale factors of the axes. One expects them to change sizes, and hardly the statistics of the
# intensities, as each voxel counts more often. The volume is right, but the sum over these more voxels is divided by
# the number of voxels in the file. So the mean is multiplied by the factors, and what is computed from the mean
# (standard deviation, coefficient of variation, mean absolute deviation) is wrong as well; with factors below 1, the
# mean is too small. Median, minimum and maximum are right. No thread about it was found.
#
# Seen (a lesion of 2304 voxels of 51 to 69; the truth is by numpy, and the same for all factors):
#   factors          mean   standard deviation  coefficient of variation  median  volume
#   1, 1, 1          60.0   5.4                 0.09                      60      2304
#   1, 1, 5          300.2  537.2               1.79                      60      11520
#   2, 2, 2          480.3  1188.9              2.48                      60      18432
#   0.5, 0.5, 0.5    7.5    18.5                2.49                      59.5    288
#   truth            60.0   5.4                 0.09                      60
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pandas==3.1.1 nibabel==5.4.2 nyxus==0.11.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import os

import nibabel
import numpy as np
import nyxus

folder = os.getcwd()
mask = np.zeros((40, 40, 16), np.int16)
mask[10:26, 12:30, 4:12] = 1
noise = np.random.default_rng(0).integers(-9, 10, mask.shape)
scan = (np.where(mask, 60, 40) + noise).astype(np.int16)
for name, array in ("scan.nii", scan), ("mask.nii", mask):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), name)
values = scan[mask > 0].astype(float)
truth = values.mean(), values.std(), values.std() / values.mean(), np.median(values)
names = "3MEAN", "3STANDARD_DEVIATION", "3COV", "3MEDIAN", "3VOXEL_VOLUME"
expected = {
    (1, 1, 1): (60.03, 5.38, 0.09, 60, 2304),
    (1, 1, 5): (300.16, 537.2, 1.79, 60, 11520),
    (2, 2, 2): (480.26, 1188.9, 2.48, 60, 18432),
    (0.5, 0.5, 0.5): (7.45, 18.55, 2.49, 59.5, 288),
}
print("truth", np.round(truth, 2).tolist())
for factors, result in expected.items():
    arguments = {f"anisotropy_{axis}": float(factor) for axis, factor in zip("xyz", factors)}
    extractor = nyxus.Nyxus3D(["*3D_ALL*"], n_feature_calc_threads=1, **arguments)
    row = extractor.featurize_files([f"{folder}/scan.nii"], [f"{folder}/mask.nii"], False).iloc[0]
    seen = [float(row[name]) for name in names]
    print("factors", factors, dict(zip(names, np.round(seen, 2).tolist())))
    assert np.allclose(seen, result, rtol=0.01), "the behaviour has changed"
    assert np.allclose(seen[:4], truth, rtol=0.01) == (factors == (1, 1, 1)), "the behaviour has changed"
END
