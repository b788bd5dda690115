#!/usr/bin/env bash
# "RAS" in ANTsPy and ITK is the opposite of "RAS" in nibabel and SimpleITK.
#
# antspyx 0.6.3, itk 5.4.7, SimpleITK 2.5.7, nibabel 5.4.2. nibabel's letters name the direction that an axis points to,
# ITK's orientation codes the direction that it comes from. Therefore ants.reorient_image2(image, "RAS") and
# itk.OrientImageFilter with the constant RAS give what nibabel calls LPI, with all three axes reversed. SimpleITK is
# built on ITK, but its letters have the meaning of nibabel's. All affines are right, but an array for a network that was
# trained on "RAS" is mirrored along every axis. ants.get_orientation returns LPI for a file that is RAS in nibabel.
#
# Seen (nibabel's letters for a file that was reoriented to RAS):
#   SimpleITK.DICOMOrient    RAS
#   itk.OrientImageFilter    LPI
#   ants.reorient_image2     LPI
#   ants.get_orientation of a file that is RAS for nibabel: LPI
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q antspyx==0.6.3 itk==5.4.7 SimpleITK==2.5.7 nibabel==5.4.2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import ants
import itk
import nibabel
import numpy as np
import SimpleITK as sitk

nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), "ras.nii.gz")


def letters(name):
    return "".join(nibabel.aff2axcodes(nibabel.load(name).affine))


assert letters("ras.nii.gz") == "RAS"
sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage("ras.nii.gz"), "RAS"), "sitk.nii.gz")
code = itk.SpatialOrientationEnums.ValidCoordinateOrientations_ITK_COORDINATE_ORIENTATION_RAS
orient = itk.OrientImageFilter.New(itk.imread("ras.nii.gz"), use_image_direction=True)
orient.SetDesiredCoordinateOrientation(code)
orient.Update()
itk.imwrite(orient.GetOutput(), "itk.nii.gz")
image = ants.image_read("ras.nii.gz")
ants.image_write(ants.reorient_image2(image, "RAS"), "ants.nii.gz")

for name, expected in dict(sitk="RAS", itk="LPI", ants="LPI").items():
    print(name, letters(f"{name}.nii.gz"))
    assert letters(f"{name}.nii.gz") == expected, "the behaviour has changed"
print("ants.get_orientation", ants.get_orientation(image))
assert ants.get_orientation(image) == "LPI", "the behaviour has changed"
END
