#!/usr/bin/env bash
# fslpy: a scan is smoothed along other axes if it is stored sagittally, so that a vessel is smeared and a slice lost.
#
# fslpy 3.29.1. resampleToReference brings a scan onto the grid of another one, here from 1 mm to slices of 5 mm.
# Before, it smooths along the axes whose resolution decreases, as documented. One expects that the result does not
# depend on the order in which the file stores its axes. But the amounts are computed for the axes of the reference, and
# applied to those of the scan. In another order, as for a sagittal scan and an axial reference, it is smoothed along a
# fine axis, and the slices are picked without smoothing. The affine is right, so that the anatomy is at its place.
#
# Seen (one scan, stored in four orders; a plate of 1 mm with the value 100; its highest value on slices of 5 mm):
#                                               RAS  LPS  PSR  SRA
#   plate across x (1 mm before and after)      100  100  19   100
#   plate across y (1 mm before and after)      100  100  100  19
#   slice of 1 mm at the centre of a new slice  19   19   100  100
#   slice of 1 mm, 2 mm from it                 12   12   0    0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 fslpy==3.29.1
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import nibabel
import numpy as np
from fsl.data.image import Image
from fsl.utils.image.resample import resampleToReference
from nibabel.orientations import axcodes2ornt, ornt_transform

affine = np.diag((1, 1, 5, 1))
affine[2, 3] = 2
reference = Image(nibabel.Nifti1Image(np.zeros((60, 60, 12)), affine))
plates = (0, 30), (1, 30), (2, 32), (2, 34)  # axis, index


def resample(codes, axis, place):
    values = np.zeros((60, 60, 60))
    np.moveaxis(values, axis, 0)[place] = 100
    scan = nibabel.Nifti1Image(values, np.eye(4))
    scan = scan.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    result, result_affine = resampleToReference(Image(scan), reference)
    assert np.allclose(result_affine, affine)
    return round(float(result.max()))


weights = np.exp(-(np.arange(-30, 31) ** 2) / (2 * (0.425 * 5) ** 2))
centre, beside = (round(float(100 * weights[k] / weights.sum())) for k in (30, 32))
expected = {
    "RAS": [100, 100, centre, beside],
    "LPS": [100, 100, centre, beside],
    "PSR": [centre, 100, 100, 0],
    "SRA": [100, centre, 100, 0],
}
assert (centre, beside) == (19, 12)
for codes in expected:
    seen = [resample(codes, *place) for place in plates]
    print(codes, *seen)
    assert seen == expected[codes], "the behaviour has changed"
END
