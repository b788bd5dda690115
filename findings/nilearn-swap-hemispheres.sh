#!/usr/bin/env bash
# swap_img_hemispheres mirrors about the middle of the array, not about the midplane of the brain.
#
# nilearn 0.14.1, nibabel 5.4.2. The function is meant to bring regions of both hemispheres together. In MNI space the
# hemispheres meet at x = 0, and the affine says where that is. The array is reversed and the affine is kept, so that
# the mirror is the middle of the field of view. The documentation asks for a sagittal alignment, not for a symmetric
# field of view. A label in a cropped scan moves by twice the distance between the two planes, here into its own
# hemisphere again. On FSL's grid of 1 mm (x from 90 to -91) the error is 1 mm. A second swap hides it.
#
# Seen (centre of a label along x in mm; expected: the same with the other sign):
#   grid                      before  after
#   symmetric, -90 to 90      20      -20
#   FSL, 1 mm, 90 to -91      20      -21
#   cropped, -20 to 70        20      30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 nibabel==5.4.2 nilearn==0.14.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import nibabel
import numpy as np
from nibabel.affines import apply_affine
from nilearn.image import swap_img_hemispheres


def centre(image):
    return apply_affine(image.affine, np.argwhere(image.get_fdata() > 0.5)).mean(0)


for name, first, step, count, expected in (
    ("symmetric", -90, 1, 181, -20),
    ("FSL", 90, -1, 182, -21),
    ("cropped", -20, 1, 91, 30),
):
    affine = np.eye(4)
    affine[0, 0], affine[0, 3] = step, first
    x = first + step * np.arange(count)
    label = np.zeros((count, 9, 9), np.float32)
    label[np.abs(x - 20) <= 3, 3:6, 3:6] = 1
    image = nibabel.Nifti1Image(label, affine)
    before, after = centre(image), centre(swap_img_hemispheres(image))
    print(name, before, after)
    assert before[0] == 20 and np.array_equal(before[1:], after[1:])
    assert np.isclose(after[0], expected), "the behaviour has changed"
END
