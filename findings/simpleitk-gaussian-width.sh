#!/usr/bin/env bash
# SimpleITK.DiscreteGaussian smooths less than its variance if its kernel would have more than 65 voxels.
#
# SimpleITK 2.5.7. The kernel is cut at maximumKernelWidth=32 voxels on each side, and rescaled to a sum of 1.
# With voxels of 0.5 mm, usual for head CT, a sigma of 10 mm becomes 7.9 mm. The variance is in mm^2 and the width in
# voxels, so the smoothing in mm depends on the spacing.
# SmoothingRecursiveGaussian, or a larger maximumKernelWidth, gives the right result.
#
# Seen (spread in mm of a smoothed point, voxels of 0.5 mm):
#   sigma  DiscreteGaussian  maximumKernelWidth=200  SmoothingRecursiveGaussian
#   4      3.9               3.9                     3.9
#   10     7.9               10.1                    9.7
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk

point = np.zeros((5, 5, 241), np.float32)
point[2, 2, 120] = 1
image = sitk.GetImageFromArray(point)
image.SetSpacing((0.5, 0.5, 5.0))
x = (np.arange(241) - 120) * 0.5


def spread(smoothed):
    profile = sitk.GetArrayFromImage(smoothed).sum((0, 1))
    return np.sqrt((profile * x**2).sum() / profile.sum())


for sigma, right in ((4, True), (10, False)):
    variance = [sigma**2, 1e-6, 1e-6]
    short = spread(sitk.DiscreteGaussian(image, variance))
    wide = spread(sitk.DiscreteGaussian(image, variance, maximumKernelWidth=200))
    recursive = spread(sitk.SmoothingRecursiveGaussian(image, [sigma, 1e-3, 1e-3]))
    print(f"sigma {sigma}: {short:.2f}, {wide:.2f} with a wide kernel, {recursive:.2f} recursive")
    assert (abs(short / sigma - 1) < 0.05) == right, "the behaviour has changed"
    assert abs(wide / sigma - 1) < 0.05 and abs(recursive / sigma - 1) < 0.05
END
