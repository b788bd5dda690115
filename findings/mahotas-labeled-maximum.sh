#!/usr/bin/env bash
# mahotas: the maximum of a lung of -900 to -800 HU is 0, unless the scan is stored as integers.
#
# mahotas 1.4.19, scipy 1.17.1. labeled.labeled_max is documented to be equal to np.max(array[labeled == i]) for an
# array of any type. But for float32 and float64, it starts from the smallest positive number of the type instead of
# the most negative one. A region that has negative values only gets a maximum of 1e-38 or 2e-308, which is 0 wherever
# numbers are rounded. Lungs, fat and air of a CT have negative values, and so have parts of normalised scans.
# Integers and labeled_min are right. No thread about it was found.
#
# Seen (maximum of each region of a scan):
#   region               int16  float32  float64   by scipy
#   background, -1000    -1000  1e-38    2e-308    -1000
#   lung, -900 to -800   -800   1e-38    2e-308    -800
#   fat, -120 to -80     -80    1e-38    2e-308    -80
#   muscle, 40 to 60     60     60       60        60
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 mahotas==1.4.19
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import mahotas.labeled
import numpy as np
from scipy import ndimage

names = {"background": (-1000, -1000), "lung": (-900, -800), "fat": (-120, -80), "muscle": (40, 60)}
regions = np.zeros((20, 20, 20), np.int32)
scan = np.full(regions.shape, -1000.0)
for number, (low, high) in enumerate(names.values()):
    if number:
        regions[4 * number : 4 * number + 3, 5:15, 5:15] = number
        scan[regions == number] = np.linspace(low, high, 300).round()

for name in "int16", "float32", "float64":
    values = scan.astype(name)
    seen = mahotas.labeled.labeled_max(values, regions)
    true = ndimage.maximum(values, regions, range(len(names)))
    print(name, dict(zip(names, seen.tolist())), "by scipy", np.asarray(true).tolist())
    assert np.array_equal(true, [high for _, high in names.values()])
    if name == "int16":
        assert np.array_equal(seen, true)
    else:
        assert (seen[:3] == np.finfo(name).tiny).all() and seen[3] == 60, "the behaviour has changed"
    lowest = mahotas.labeled.labeled_min(values, regions)
    assert np.array_equal(lowest, [low for low, _ in names.values()])
END
