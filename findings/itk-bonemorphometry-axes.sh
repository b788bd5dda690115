#!/usr/bin/env bash
# itk-bonemorphometry: on slices of 5 mm, the same plates of bone are 75 mm thick if they lie one way, and 3 mm if not.
#
# itk-bonemorphometry 1.5.1, itk 5.4.7. BoneMorphometryFeaturesFilter counts how often lines along the three axes enter
# and leave the bone, and divides by their length in mm. From the mean, it computes the surface per volume of bone
# (BSBV), the thickness of the trabeculae (TbTh), their number (TbN) and their separation (TbSp). Images have a spacing,
# so one expects the same values for the same body on other voxels. But the offsets to the neighbours are in the order
# z, y, x (itkBoneMorphometryFeaturesFilter.hxx: offsetX is {0, 0, 1}): what is counted along z is divided by the
# spacing along x, and the reverse. Only if the voxels are as thick as wide, all is right. No thread about it was found.
#
# Seen (BSBV per mm and TbTh in mm; in brackets the same counts by numpy; the surface of the ball is 3 / 25 = 0.12; the
# plates are 10 mm thick, which is 15 mm as a mean of lines along the three axes):
#   body                     voxels of 1 x 1 x 1 mm       voxels of 1 x 1 x 5 mm
#   ball, radius of 25 mm    0.120 (0.120)  16.6 (16.6)   0.246 (0.120)   8.1 (16.6)
#   plates across x          0.133 (0.133)  15.0 (15.0)   0.027 (0.133)  75.0 (15.0)
#   plates across z          0.133 (0.133)  15.0 (15.0)   0.667 (0.133)   3.0 (15.0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 itk==5.4.7 itk-bonemorphometry==1.5.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import itk
import numpy as np

side = 80


def measure(body, spacing):
    """Return BSBV and TbTh of a body, a function of x, y and z in mm, by the filter and from a count in numpy."""
    axes = [(np.arange(round(side / step)) + 0.5) * step - side / 2 for step in reversed(spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    bone = body(x, y, z)
    inside = np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z)) < side / 2 - 10
    scan = itk.image_from_array(np.where(bone, 1000, 0).astype(np.int16))
    mask = itk.image_from_array(inside.astype(np.uint8))
    for image in scan, mask:
        image.SetSpacing(spacing)
    features = itk.BoneMorphometryFeaturesFilter.New(scan, MaskImage=mask, Threshold=500)
    features.Update()
    per_mm = []
    for axis, step in enumerate(reversed(spacing)):
        ends = sum((bone & ~np.roll(bone, shift, axis) & inside).sum() for shift in (1, -1))
        per_mm.append(ends / (inside.sum() * step))
    part = bone[inside].mean()
    assert abs(features.GetBVTV() - part) < 1e-6
    return features.GetBSBV(), features.GetTbTh(), 2 * np.mean(per_mm) / part, part / np.mean(per_mm)


def ball(x, y, z):
    return x**2 + y**2 + z**2 <= 25**2


def plates_across_x(x, y, z):
    return x % 20 < 10


def plates_across_z(x, y, z):
    return z % 20 < 10


cube, slab = (1.0, 1.0, 1.0), (1.0, 1.0, 5.0)
expected = {
    (cube, ball): (0.1202, 16.64),
    (cube, plates_across_x): (0.1333, 15),
    (cube, plates_across_z): (0.1333, 15),
    (slab, ball): (0.2455, 8.146),
    (slab, plates_across_x): (0.0267, 75),
    (slab, plates_across_z): (0.6667, 3),
}
for (spacing, body), values in expected.items():
    *seen, area, thickness = measure(body, spacing)
    print(spacing, body.__name__, "seen", np.round(seen, 3), "true", np.round((area, thickness), 3))
    assert np.allclose((area, thickness), expected[cube, body], rtol=0.01)
    assert np.allclose(seen, values, rtol=0.01), "the behaviour has changed"
END
