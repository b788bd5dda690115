#!/usr/bin/env bash
# rt-utils: a lesion disappears when it is read on slices with more columns than rows, and moves if pixels are not square.
#
# rt-utils 1.2.7, opencv-python 5.0.0.93, pydicom 3.0.2. add_roi writes the contours of a mask, and get_roi_mask_by_name
# reads them again. add_roi is right for a mask of (rows, columns, slices). One expects the same mask back. The array that
# is returned has the shape (columns, rows, slices), but the contours are filled as in (rows, columns, slices). With 48
# rows, columns from 48 on are cut off: with 64 columns, a lesion in columns 50 to 59 is read as empty, without an error.
# If there are more rows than columns, the lower part is lost. PixelSpacing is the distance between rows and then that
# between columns (DICOM PS3.3 10.7.1.3); rt-utils uses them in the opposite order, so with pixels of 0.5 x 1 mm the
# contours that it writes are at another place. Its own reader repeats this, so that a round trip on square slices is
# exact. The documentation does not mention either.
#
# Seen (a lesion of 10 x 10 voxels, 48 rows, 64 columns):
#   columns   voxels written   shape read    voxels read
#   20 to 29  100              64, 48, 5     100
#   43 to 52  100              64, 48, 5     50
#   50 to 59  100              64, 48, 5     0
#   rows 0.5 mm apart, columns 1 mm apart, lesion from (x, y) = (20, 5) mm: contour from (10, 10) mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pydicom==3.0.2 opencv-python==5.0.0.93 rt-utils==1.2.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import contextlib
import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder

ROWS, COLUMNS = 48, 64


def write_scan(folder, between_rows, between_columns):
    Path(folder).mkdir()
    series, study = generate_uid(), generate_uid()
    for k in range(5):
        plane = Dataset()
        plane.file_meta = FileMetaDataset()
        plane.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plane.SOPClassUID, plane.SOPInstanceUID = CTImageStorage, generate_uid()
        plane.SeriesInstanceUID, plane.StudyInstanceUID, plane.FrameOfReferenceUID = series, study, study
        plane.PatientName = plane.PatientID = plane.PatientBirthDate = plane.PatientSex = ""
        plane.StudyDate = plane.StudyTime = plane.StudyID = plane.AccessionNumber = ""
        plane.Modality, plane.InstanceNumber = "CT", k + 1
        plane.ImageOrientationPatient, plane.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * k]
        plane.PixelSpacing, plane.SliceThickness = [between_rows, between_columns], 5
        plane.Rows, plane.Columns, plane.SamplesPerPixel = ROWS, COLUMNS, 1
        plane.PhotometricInterpretation, plane.PixelRepresentation = "MONOCHROME2", 1
        plane.BitsAllocated, plane.BitsStored, plane.HighBit = 16, 16, 15
        plane.RescaleSlope, plane.RescaleIntercept, plane.PixelData = 1, 0, bytes(2 * ROWS * COLUMNS)
        plane.save_as(f"{folder}/{k}.dcm", enforce_file_format=True)
    return folder


def write_and_read(scan, mask):
    with contextlib.redirect_stdout(io.StringIO()):
        structures = RTStructBuilder.create_new(dicom_series_path=scan)
        structures.add_roi(mask=mask, name="lesion")
        structures.save("structures.dcm")
    contour = pydicom.dcmread("structures.dcm").ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    read = RTStructBuilder.create_from(dicom_series_path=scan, rt_struct_path="structures.dcm")
    return points, read.get_roi_mask_by_name("lesion")


square = write_scan("square", 1, 1)
for first, expected in ((20, 100), (43, 50), (50, 0)):
    mask = np.zeros((ROWS, COLUMNS, 5), bool)
    mask[10:20, first : first + 10, 2] = True
    points, read = write_and_read(square, mask)
    assert points[:, :2].min(0).tolist() == [first, 10]  # the contours are right
    print("columns", first, first + 9, mask.sum(), read.shape, read.sum())
    assert read.shape == (COLUMNS, ROWS, 5) and read.sum() == expected, "the behaviour has changed"

mask = np.zeros((ROWS, COLUMNS, 5), bool)
mask[10:20, 20:30, 2] = True
points, _ = write_and_read(write_scan("oblong", 0.5, 1), mask)
print("true corner", (20 * 1, 10 * 0.5), "corner of the contour", points[:, :2].min(0))
assert points[:, :2].min(0).tolist() == [10, 10], "the behaviour has changed"
END
