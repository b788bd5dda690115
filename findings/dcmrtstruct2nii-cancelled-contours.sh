#!/usr/bin/env bash
# dcmrtstruct2nii, PlatiPy: contours drawn twice as densely as the slices cancel each other, so that the mask is empty.
#
# dcmrtstruct2nii 5, platipy 0.7.2, pydicom 2.4.5. Each contour of an RTSTRUCT is filled in the nearest slice, and
# combined with what is there by exclusive or, so that an inner contour makes a hole. If contours are closer together
# than slices, as when a structure that was drawn on a thin series is read with a thick one, two equal outlines come
# into one slice, and the second removes the first. One expects a filled slice: contours at different heights are no
# holes. With three per slice the mask is right; where the outlines differ, a rim remains. Nothing is logged. The README
# of dcmrtstruct2nii speaks of the original slices, and says that holes may not work; PlatiPy does not mention it.
# Contours of type CLOSEDPLANAR_XOR, that DICOM has for exclusive or, are skipped by dcmrtstruct2nii: the mask is empty
# as well.
#
# Seen (a block of 20 x 20 x 15 mm, and a pyramid; slices of 5 mm; volumes in mm3; PlatiPy adds half a voxel all around):
#   contours every          expected  dcmrtstruct2nii  PlatiPy
#   5 mm                    6000      6000             6615
#   2.5 mm                  6000      0                0
#   1.67 mm                 6000      6000             6615
#   2.5 mm, pyramid         1986      900              1100
#   one, CLOSEDPLANAR_XOR   2000      0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.2.6 scipy==1.17.1 SimpleITK==2.5.7 scikit-image==0.26.0 matplotlib==3.11.2 \
    pydicom==2.4.5 termcolor==3.3.0
"$folder/venv/bin/pip" install -q --no-deps dcmrtstruct2nii==5 platipy==0.7.2
cd "$folder"
mkdir scan
"$folder/venv/bin/python" -W ignore - <<'END'
import os

import numpy as np
import SimpleITK as sitk
from dcmrtstruct2nii import dcmrtstruct2nii
from platipy.dicom.io.rtstruct_to_nifti import convert_rtstruct
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

series, study = generate_uid(), generate_uid()


def dataset(name, storage):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result = FileDataset(name, {}, file_meta=meta, preamble=bytes(128))
    result.is_little_endian, result.is_implicit_VR = True, False
    result.SOPClassUID = meta.MediaStorageSOPClassUID = storage
    result.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    result.StudyInstanceUID = result.FrameOfReferenceUID = study
    result.PatientName = result.PatientID = ""
    return result


for k in range(7):
    slice_ = dataset(f"scan/{k}.dcm", CTImageStorage)
    slice_.SeriesInstanceUID, slice_.Modality, slice_.InstanceNumber = series, "CT", k + 1
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * k]
    slice_.PixelSpacing, slice_.SliceThickness, slice_.Rows, slice_.Columns = [1, 1], 5, 40, 40
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept, slice_.PixelData = 1, 0, bytes(2 * 40 * 40)
    slice_.save_as(f"scan/{k}.dcm", write_like_original=False)


def volumes(heights, sides, kind="CLOSED_PLANAR"):
    file = dataset("structures.dcm", RTStructureSetStorage)
    file.SeriesInstanceUID, file.Modality = generate_uid(), "RTSTRUCT"
    roi, contours = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "lesion", study
    contours.ReferencedROINumber, contours.ContourSequence = 1, []
    for z, side in zip(heights, sides):
        contour = Dataset()
        corners = (np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) - 0.5) * side + 19.5
        contour.ContourGeometricType, contour.NumberOfContourPoints = kind, 4
        contour.ContourData = np.c_[corners, np.full(4, z)].round(4).ravel().tolist()
        contours.ContourSequence.append(contour)
    file.StructureSetROISequence, file.ROIContourSequence = [roi], [contours]
    file.save_as("structures.dcm", write_like_original=False)
    dcmrtstruct2nii("structures.dcm", "scan", "first", convert_original_dicom=False)
    convert_rtstruct("scan", "structures.dcm", prefix="", output_dir="second")
    masks = [sitk.ReadImage(name) for name in ("first/mask_lesion.nii.gz", "second/lesion.nii.gz")]
    return [int((sitk.GetArrayViewFromImage(mask) > 0).sum() * np.prod(mask.GetSpacing())) for mask in masks]


os.mkdir("second")
results = []
for step in (5, 2.5, 5 / 3):
    heights = np.arange(7.5 + step / 2, 22.5, step)
    assert np.isclose(len(heights) * step * 20**2, 6000)
    results.append(volumes(heights, np.full(len(heights), 20)))
    print("block, contours every", round(step, 2), results[-1])
heights = np.arange(8.75, 22.5, 2.5)
sides = 20 * (22.5 - heights) / 15
results.append(volumes(heights, sides))
print("pyramid", results[-1], "expected", (2.5 * sides**2).sum())
exclusive = volumes([10], [20], "CLOSEDPLANAR_XOR")[0]
print("CLOSEDPLANAR_XOR, dcmrtstruct2nii", exclusive)
expected = [[6000, 6615], [0, 0], [6000, 6615], [900, 1100]]
assert results == expected and exclusive == 0, "the behaviour has changed"
END
