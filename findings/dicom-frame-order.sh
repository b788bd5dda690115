#!/usr/bin/env bash
# A CT in one DICOM file is read upside down, or with voxels of another size, if its frames are stored in another order.
#
# SimpleITK 2.5.7, dicom2nifti 2.6.2, dcm2niix 1.0.20260724, highdicom 0.28.2, pydicom 3.0.2. In an enhanced CT each
# frame has its own position, so that frames may be stored in any order. One expects each slice at its position, or an
# error. dicom2nifti sorts the slices by In-Stack Position Number, but takes their direction from the first and the last
# stored frame, so that a scan can be upside down. It also adds no rescale intercept that is the same for all frames:
# air has 24 HU. (Neither does pydicom's apply_modality_lut, which is known: pydicom#2353.) SimpleITK keeps the stored
# order; if the distances are unequal, all spacings become 1 mm, also in the plane. Slicer, which reads with ITK, is
# known to have wrong spacings (Slicer#6773). There is no warning. dcm2niix and highdicom are right.
#
# Seen (6 slices of 5 mm; largest error of a position in mm, voxel in mm3, HU of air; the truth: 0, 1.25 and -1000):
#   frames stored     SimpleITK       dicom2nifti                dcm2niix        highdicom
#   head to feet      0  1.25  -1000  0   1.25  24               0  1.25  -1000  0  1.25  -1000
#   feet to head      0  1.25  -1000  25  1.25  24               0  1.25  -1000  0  1.25  -1000
#   every second one  30  1    -1000  ConversionValidationError  0  1.25  -1000  0  1.25  -1000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 SimpleITK==2.5.7 pydicom==3.0.2 \
    highdicom==0.28.2 dicom2nifti==2.6.2 dcm2niix==1.0.20260724
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import logging
import os
import subprocess
import sys

import dicom2nifti
import highdicom
import nibabel
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

logging.disable()
heights = np.arange(100, 130, 5)  # z of the slices; the first voxel of each contains its z in HU, the others air
series, study = generate_uid(), generate_uid()


def slice_at(k, height):
    pixels = np.full((16, 20), 24, np.uint16)
    pixels[0, 0] = 1024 + height
    slice_ = Dataset()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
    slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = series, study, study
    slice_.PatientName = slice_.PatientID = slice_.PatientBirthDate = slice_.PatientSex = slice_.StudyID = ""
    slice_.AccessionNumber = slice_.ReferringPhysicianName = slice_.PositionReferenceIndicator = ""
    slice_.StudyDate = slice_.AcquisitionDate = slice_.ContentDate = "20260101"
    slice_.StudyTime = slice_.AcquisitionTime = slice_.ContentTime = "120000"
    slice_.Modality, slice_.ImageType, slice_.BodyPartExamined = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "HEAD"
    slice_.Manufacturer, slice_.SeriesNumber, slice_.InstanceNumber = "none", 1, k + 1
    slice_.PatientPosition, slice_.AcquisitionNumber = "HFS", 1
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-5, -4, int(height)]
    slice_.PixelSpacing, slice_.SliceThickness, slice_.SpacingBetweenSlices = [0.5, 0.5], 5, 5
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 16, 20, 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
    slice_.RescaleSlope, slice_.RescaleIntercept, slice_.RescaleType = 1, -1024, "HU"
    slice_.PixelData = pixels.tobytes()
    return slice_


def write(folder, order):
    slices = [slice_at(k, height) for k, height in enumerate(heights)]
    file = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, generate_uid(), 1, generate_uid(), 1)
    frames, pixels = list(file.PerFrameFunctionalGroupsSequence), file.pixel_array
    file.PerFrameFunctionalGroupsSequence = [frames[k] for k in order]
    file.PixelData = pixels[order].tobytes()
    os.mkdir(folder)
    file.save_as(f"{folder}/scan.dcm")


def by_simpleitk(folder):
    image = sitk.ReadImage(f"{folder}/scan.dcm")
    step = image.GetSpacing()[2] * image.GetDirection()[8]
    return sitk.GetArrayFromImage(image), image.GetOrigin()[2], step, np.prod(image.GetSpacing())


def nifti(path):
    image = nibabel.load(path)
    array = np.moveaxis(image.get_fdata(), 2, 0)
    return array, image.affine[2, 3], image.affine[2, 2], abs(np.linalg.det(image.affine[:3, :3]))


def by_dcm2niix(folder):
    program = os.path.join(os.path.dirname(sys.executable), "dcm2niix")
    subprocess.run([program, "-f", "scan", "-o", folder, folder], check=True, stdout=subprocess.DEVNULL)
    return nifti(f"{folder}/scan.nii")


def by_dicom2nifti(folder):
    dicom2nifti.dicom_series_to_nifti(folder, f"{folder}/dicom2nifti.nii", reorient_nifti=False)
    return nifti(f"{folder}/dicom2nifti.nii")


def by_highdicom(folder):
    volume = highdicom.imread(f"{folder}/scan.dcm").get_volume()
    return volume.array, volume.affine[2, 3], volume.affine[2, 0], np.prod(volume.spacing)


right, without_intercept = (0, 1.25, -1000), (0, 1.25, 24)
expected = {
    "head to feet": (np.arange(6), right, without_intercept),
    "feet to head": (np.arange(6)[::-1], right, (25, 1.25, 24)),
    "every second one": (np.r_[0:6:2, 1:6:2], (30, 1, -1000), "ConversionValidationError"),
}
for name, (order, *results) in expected.items():
    write(name, order)
    for read, result in zip((by_simpleitk, by_dicom2nifti, by_dcm2niix, by_highdicom), (*results, right, right)):
        try:
            array, first, step, voxel = read(name)
            air, seen = np.median(array), array.max((1, 2))
            slices = seen - air - 1000  # z of each slice in DICOM
            error = np.abs(first + step * np.arange(6) - slices).max()
            found = tuple(np.round((error, voxel, air), 2).tolist())
        except dicom2nifti.exceptions.ConversionValidationError as problem:
            found = type(problem).__name__
        print(name, read.__name__, found)
        assert found == result, "the behaviour has changed"
END
