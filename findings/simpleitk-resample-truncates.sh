#!/usr/bin/env bash
# Resample of integers drops the fraction instead of rounding: a constant of 100 becomes 99.
#
# SimpleITK 2.5.7. CT scans and masks are stored as integers. Resample interpolates in double precision and then cuts
# the fraction off, towards 0. 99.9999 becomes 99, so a B-spline changes most voxels of a scan that is resampled onto
# its own grid. Linear interpolation moves positive values down and negative ones up by half a unit on average, each
# time. With linear interpolation, a voxel of a mask remains only if it is completely inside. Resampling as float and
# rounding gives the expected values.
#
# Seen:
#   a constant of 100, shifted by less than a voxel, B-spline          99
#   changed voxels of a scan on its own grid, B-spline                 0.56
#   tissue with a mean of 39.5 HU, after 1 and 10 linear resamplings   39.1 34.7   (as float: 39.6 39.7)
#   fat with a mean of -80.3 HU, after 1 linear resampling             -79.8       (as float: -80.3)
#   mask of 1000 voxels, shifted by 0.4 voxels along each axis         729         (as float, at least 0.5: 972)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk

inner = (slice(8, -8),) * 3
generator = np.random.default_rng(0)


def resample(values, shift, interpolator=sitk.sitkLinear):
    transform = sitk.TranslationTransform(3, (float(shift),) * 3)
    return sitk.GetArrayFromImage(sitk.Resample(sitk.GetImageFromArray(values), transform, interpolator))


def noise(mean):
    return generator.normal(mean, 20, (30, 30, 30)).round().astype(np.int16)


constant = np.unique(resample(np.full((30, 30, 30), 100, np.int16), 0.3, sitk.sitkBSpline)[inner])
print("constant", constant)
assert constant.tolist() == [99], "the behaviour has changed"

tissue, fat = noise(40), noise(-80)
changed = np.mean(resample(tissue, 0, sitk.sitkBSpline) != tissue)
exact = resample(tissue.astype(np.float32), 0, sitk.sitkBSpline)
print("changed by a B-spline on the own grid", changed)
assert changed > 0.3 and np.array_equal(exact.round(), tissue), "the behaviour has changed"

for values, times in ((tissue, 10), (fat, 1)):
    whole, fraction = values, values.astype(np.float32)
    for step in range(times):
        whole, fraction = (resample(scan, 0.25 * (-1) ** step) for scan in (whole, fraction))
        if step in (0, times - 1):
            means = [float(scan[inner].mean()) for scan in (values, whole, fraction)]
            print("means before and after, and as float", *means)
            assert abs(means[2] - means[0]) < 0.3 < abs(means[1] - means[2]), "the behaviour has changed"
            assert abs(means[1]) < abs(means[2]), "the behaviour has changed"
    assert times == 1 or means[1] < 36, "the behaviour has changed"

mask = np.zeros((30, 30, 30), np.uint8)
mask[10:20, 10:20, 10:20] = 1
whole = int(resample(mask, 0.4).sum())
fraction = int((resample(mask.astype(np.float32), 0.4) >= 0.5).sum())
print("mask", mask.sum(), whole, fraction)
assert (whole, fraction) == (729, 972), "the behaviour has changed"
END
