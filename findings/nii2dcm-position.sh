#!/usr/bin/env bash
# nii2dcm: a scan that is written as DICOM is 7 cm from its place, and a sagittal scan is turned upside down.
#
# nii2dcm 0.1.6, SimpleITK 2.5.7. nii2dcm converts a NIfTI file to a DICOM series, with positions and orientation from
# its affine. In NIfTI, x and y have the opposite sign. But the position of a slice is written without a change of sign,
# and it is that of the slice before (Nifti.get_nii2dcm_parameters counts slices from 1 in one function and from 0 in
# another); the directions of rows and columns are written with a change of sign of z, too. So everything is moved by
# twice the origin and a slice; if the slices are oblique, they are tilted to the other side; if they are sagittal, the
# head is upside down. The images themselves look right, so that this is seen only with another series, a mask or a
# plan. nii2dcm#41 and #43 report such differences.
#
# Seen (centres in mm of two lesions, x y z as in DICOM; true values by nibabel in brackets):
#   slices    first lesion                               second lesion
#   axial     -29.5 -41.5 -25.0  ( 10.5 18.5 -22.0)      -50.5 -70.5   2.0  (-10.5 -10.5  5.0)
#   oblique   -29.5 -32.3 -36.1  ( 10.5 11.2 -26.5)      -50.5 -67.9 -18.9  (-10.5  -8.6  7.9)
#   sagittal  -15.0 -29.5 -36.5  ( 12.0 10.5 -13.5)       12.0 -50.5 -65.5  (-15.0 -10.5 15.5)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==1.23.2 nibabel==5.0.0 pydicom==2.3.0 SimpleITK==2.5.7 nii2dcm==0.1.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from pathlib import Path

import nibabel
import nii2dcm.dcm
import nii2dcm.svr
import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from nii2dcm.run import run_nii2dcm

scan = np.full((40, 48, 20), 10, np.int16)
scan[8:12, 10:14, 5:8] = 100
scan[30:32, 40:42, 15] = 200
axial = np.array([[1, 0, 0, -20], [0, 1, 0, -30], [0, 0, 3, -40], [0, 0, 0, 1.0]])
sagittal = np.array([[0, 0, 3, -30], [1, 0, 0, -20], [0, 1, 0, -25], [0, 0, 0, 1.0]])
turn = np.eye(4)
turn[1:3, 1:3] = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
affines = {"axial": axial, "oblique": turn @ axial, "sagittal": sagittal}
expected = {
    "axial": ((-29.5, -41.5, -25), (-50.5, -70.5, 2)),
    "oblique": ((-29.5, -32.3, -36.1), (-50.5, -67.9, -18.9)),
    "sagittal": ((-15, -29.5, -36.5), (12, -50.5, -65.5)),
}
for name, affine in affines.items():
    nibabel.save(nibabel.Nifti1Image(scan, affine), "scan.nii.gz")
    series = Path(name)
    series.mkdir()
    run_nii2dcm("scan.nii.gz", series, "MR")
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name))
    array = sitk.GetArrayFromImage(image)
    for value, place in zip((100, 200), expected[name]):
        voxel = np.argwhere(array == value).mean(0)[::-1]
        seen = image.TransformContinuousIndexToPhysicalPoint(voxel.tolist())
        true = apply_affine(affine, np.argwhere(scan == value).mean(0)) * (-1, -1, 1)
        print(name, value, "seen", np.round(seen, 1), "true", true.round(1))
        assert np.allclose(seen, place, atol=0.1), "the behaviour has changed"
END
