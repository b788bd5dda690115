#!/usr/bin/env bash
# ANTsPy: the median of a CT is that of its voxels above 0 HU, even with nonzero=False, unless q is in a list.
#
# antspyx 0.6.3. ants.quantile(image, q, nonzero=True) is the quantile of the intensities of a scan. By its name,
# nonzero leaves out voxels of 0, the background of a scan without a skull. But it leaves out those below 0, too: all
# air, lung and fat of a CT. And for a single q, they are left out in any case: nonzero=False is without effect. For a
# list with one q, it works. So a window from the quantiles 0.01 to 0.99 of a chest CT begins at 0 HU. The docstring
# says nothing about nonzero. No thread about it was found.
#
# Seen (HU of a CT, of which 60 % is air of -1000, 20 % is fat of -100 and 20 % is tissue of 40 HU):
#   q     q, nonzero=False  [q], nonzero=False  q   numpy
#   0.5   41                 -980               41   -980
#   0.01   3                -1041                3  -1041
#   0.99  87                   73               87     73
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.3.5 antspyx==0.6.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import ants
import numpy as np

generator = np.random.default_rng(0)
values = np.repeat([-1000.0, -1000, -1000, -100, 40], 1600).reshape(20, 20, 20)
values = (values + generator.normal(scale=20, size=values.shape)).astype(np.float32)
scan = ants.from_numpy(values)
for q in (0.5, 0.01, 0.99):
    single = ants.quantile(scan, q, nonzero=False)
    (listed,) = ants.quantile(scan, [q], nonzero=False)
    default, true, positive = ants.quantile(scan, q), np.quantile(values, q), np.quantile(values[values > 0], q)
    print(f"q {q}: single {single:.1f}, listed {listed:.1f}, default {default:.1f}, numpy {true:.1f}")
    assert abs(listed - true) < 0.1
    assert abs(single - positive) < 0.1 and abs(default - positive) < 0.1, "the behaviour has changed"
    assert q > 0.9 or positive - true > 900
END
