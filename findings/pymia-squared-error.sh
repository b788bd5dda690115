#!/usr/bin/env bash
# pymia: the mean squared error of two CTs that differ by 256 HU everywhere is 0, and for 200 HU it is negative.
#
# pymia 0.3.4. Its metrics for the reconstruction and regression of images take arrays, also those of SimpleITK and of
# pymia's own reader, which are int16 for most CTs. One expects the errors of the numbers. But the differences and their
# squares stay in the type of the arrays: squares of differences above 181 HU do not fit into 16 bits. The mean squared
# error is then too small or negative, and its root, alone (RMSE) or by the range of the reference (NRMSE), is too small
# or NaN. For uint8, so is the mean absolute error: 5 less 10 is 251. There is no warning for arrays, and the
# documentation does not name a type. With floats all are right.
#
# Seen (a CT of -1000 to 1499 HU and the same CT with an offset; in brackets the same as float64):
#   offset  MSE               RMSE         NRMSE          MAE
#   100 HU   10000 (10000)    100 (100)    0.040 (0.040)  100 (100)
#   200 HU  -25536 (40000)    NaN (200)    NaN   (0.080)  200 (200)
#   256 HU       0 (65536)      0 (256)    0     (0.102)  256 (256)
#   300 HU   24464 (90000)    156 (300)    0.063 (0.120)  300 (300)
#   10 instead of 5 as uint8: MAE 251 (5)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7 scikit-image==0.26.0
"$folder/venv/bin/pip" install -q --no-deps pymia==0.3.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
from pymia.evaluation import metric


def measure(name, prediction, reference):
    measurement = getattr(metric, name)()
    measurement.prediction, measurement.reference = prediction, reference
    return float(measurement.calculate())


names = "MeanSquaredError", "RootMeanSquaredError", "NormalizedRootMeanSquaredError", "MeanAbsoluteError"
print("pymia", version("pymia"))
scan = np.random.default_rng(0).integers(-1000, 1500, (20, 40, 40)).astype(np.int16)
expected = {
    100: (10000, 100, 0.04, 100),
    200: (-25536, np.nan, np.nan, 200),
    256: (0, 0, 0, 256),
    300: (24464, 156.41, 0.0626, 300),
}
for offset, values in expected.items():
    other = scan + np.int16(offset)
    seen = [measure(name, other, scan) for name in names]
    plain = [measure(name, other.astype(np.float64), scan.astype(np.float64)) for name in names]
    print(offset, "HU, int16", np.round(seen, 4), "float64", np.round(plain, 4))
    assert other.dtype == scan.dtype == np.int16 and other.max() == scan.max() + offset
    assert np.allclose(plain, (offset**2, offset, offset / 2499, offset))
    assert np.allclose(seen, values, rtol=1e-3, equal_nan=True), "the behaviour has changed"
five, ten = (np.full((4, 4, 4), value, np.uint8) for value in (5, 10))
error = measure("MeanAbsoluteError", ten, five)
print("10 instead of 5 as uint8: MAE", error)
assert error == 251, "the behaviour has changed"
END
