#!/usr/bin/env bash
# SimpleITK: of a CT that is stored as MONOCHROME1, air has 3071 HU and bone -24 HU. Other readers give -1024 and 2071.
#
# SimpleITK 2.5.7, itk 5.4.7, dicom2nifti 2.6.2, pydicom 3.0.2. MONOCHROME1 and MONOCHROME2 say whether the smallest value
# is shown white or black; both are allowed for CT and MR. One expects that this matters for the display only, and that
# a reader of volumes returns the stored values times the slope plus the intercept, as dicom2nifti and pydicom do. But
# for MONOCHROME1, ITK's reader replaces the stored values x of unsigned images by 2^bits - 1 - x before it applies the
# slope and the intercept. There is no warning, and the tags that it returns are those of the file.
#
# Seen (12 bits, slope 1, intercept -1024; air, water, bone):
#                            MONOCHROME2         MONOCHROME1
#   pydicom, dicom2nifti     -1024  0     2071   -1024  0     2071
#   SimpleITK, itk           -1024  0     2071   3071   2047  -24
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7 itk-core==5.4.7 itk-io==5.4.7 itk-numerics==5.4.7 \
    itk-filtering==5.4.7 dicom2nifti==2.6.2 nibabel==5.4.2 pydicom==3.0.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import os

import dicom2nifti
import itk
import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_rescale
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

stored = np.zeros((4, 8, 8), np.uint16)  # air
stored[:, :, 2:5] = 1024  # water
stored[:, :, 5:] = 3095  # bone


def read(kind):
    os.mkdir(kind)
    series, study, files = generate_uid(), generate_uid(), [f"{kind}/{k}.dcm" for k in range(4)]
    for k, file in enumerate(files):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = series, study, study
        slice_.Modality, slice_.Manufacturer, slice_.InstanceNumber = "CT", "", k + 1
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * k]
        slice_.PixelSpacing, slice_.SliceThickness, slice_.Rows, slice_.Columns = [1, 1], 5, 8, 8
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, kind
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.PixelData = 1, -1024, stored[k].tobytes()
        slice_.save_as(file, enforce_file_format=True)
    dicom2nifti.dicom_series_to_nifti(kind, f"{kind}.nii.gz", reorient_nifti=False)
    first = pydicom.dcmread(files[0])
    simple = sitk.ReadImage(files)
    assert sitk.ReadImage(files[0]).GetMetaData("0028|0004").strip() == kind
    arrays = {
        "pydicom": apply_rescale(first.pixel_array, first)[None],
        "dicom2nifti": nibabel.load(f"{kind}.nii.gz").get_fdata().T,
        "SimpleITK": sitk.GetArrayFromImage(simple),
        "itk": itk.array_from_image(itk.imread(files)),
    }
    values = {name: [int(array[0, 0, x]) for x in (0, 3, 7)] for name, array in arrays.items()}
    print(kind, values)
    return values


right, wrong = [-1024, 0, 2071], [3071, 2047, -24]
assert set(map(tuple, read("MONOCHROME2").values())) == {tuple(right)}
expected = {"pydicom": right, "dicom2nifti": right, "SimpleITK": wrong, "itk": wrong}
assert read("MONOCHROME1") == expected, "the behaviour has changed"
END
