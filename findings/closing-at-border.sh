#!/usr/bin/env bash
# The closing of a mask of 48 voxels that touches the border of the volume has 32, 48 or 108 voxels.
#
# scipy 1.17.1, scikit-image 0.26.0, SimpleITK 2.5.7. By definition, a closing never removes voxels, and a single box does
# not change. scipy.ndimage.binary_closing treats voxels outside of the volume as background in the erosion too, and
# removes the layer at the border: 32. scikit-image treats them as foreground in the erosion, and fills the space between
# the box and borders that are a voxel away: 108. SimpleITK pads the volume first: 48. A brain or a bleed that is cut by
# the field of view loses or gains a layer. With padding before and cropping after, all three give 48.
#
# Seen:
#   mask 48, scipy 32, scikit-image 108, SimpleITK 48; padded: 48, 48, 48
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage import morphology

mask = np.zeros((6, 6, 6), bool)
mask[:3, 1:5, 1:5] = True
element = np.ones((3, 3, 3), bool)


def by_itk(mask):
    closed = sitk.BinaryMorphologicalClosing(sitk.GetImageFromArray(mask.astype(np.uint8)), [1, 1, 1], sitk.sitkBox)
    return sitk.GetArrayFromImage(closed) > 0


closings = {
    "scipy": (lambda mask: ndimage.binary_closing(mask, element), 32),
    "scikit-image": (lambda mask: morphology.closing(mask, element), 108),
    "SimpleITK": (by_itk, 48),
}
for name, (closing, expected) in closings.items():
    plain, padded = closing(mask).sum(), closing(np.pad(mask, 2))[2:-2, 2:-2, 2:-2].sum()
    print(f"{name}: {plain} of {mask.sum()} voxels, {padded} if padded")
    assert (plain, padded) == (expected, 48), "the behaviour has changed"
END
