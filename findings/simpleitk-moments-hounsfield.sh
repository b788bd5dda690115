#!/usr/bin/env bash
# Two CTs are aligned by their centres of mass in the wrong direction, because the mass of air is negative.
#
# SimpleITK 2.5.7, antspyx 0.6.3. CenteredTransformInitializer with MOMENTS aligns the centres of mass of two scans before
# a registration. Intensities are used as masses. In Hounsfield units air has -1000, so the sums are negative: the "centre
# of mass" is that of the air, and if head and air nearly balance, it is far outside of the scan. One expects an error, or
# a mask or threshold. There is no warning, and the registration starts from there. With 1000 added to both scans, the
# result is exact. antspyx's get_center_of_mass has the same centre.
#
# Seen (a head that was moved by 10 mm along x):
#   translation, in HU          -1.55 0 0
#   translation, in HU + 1000   10 0 0
#   centres of mass of the moved head: SimpleITK 29.87 31.42 19.42, antspyx the same; true 42 32 20
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 antspyx==0.6.3 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import ants
import numpy as np
import SimpleITK as sitk


def head(moved):
    z, y, x = np.indices((40, 64, 64))
    inside = 2.5 * (z - 20) ** 2 + (y - 32) ** 2 + (x - 32 - moved) ** 2 < 20**2
    return np.where(inside, 40, -1000).astype(np.float32)


def initial(fixed, moving):
    images = map(sitk.GetImageFromArray, (fixed, moving))
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    found = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), moments))
    return np.array(found.GetCenter()), np.array(found.GetTranslation())


fixed, moving = head(0), head(10)
_, wrong = initial(fixed, moving)
_, right = initial(fixed + 1000, moving + 1000)
print("translation, in HU", wrong.round(2), "in HU + 1000", right.round(2))
center, _ = initial(moving, moving)
by_ants = np.array(ants.get_center_of_mass(ants.from_numpy(moving.transpose(2, 1, 0))))
print("centre of mass", center.round(2), by_ants.round(2))
assert np.allclose(right, (10, 0, 0), atol=1e-3) and wrong[0] < 0, "the behaviour has changed"
assert np.allclose(center, by_ants, atol=0.1) and abs(center[0] - 42) > 10, "the behaviour has changed"
END
