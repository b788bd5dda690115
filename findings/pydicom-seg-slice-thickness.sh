#!/usr/bin/env bash
# pydicom-seg: of a lesion in a CT whose slices overlap, nearly half is lost; with gaps, four fifths of its volume.
#
# pydicom-seg 0.4.1, highdicom 0.22.0, pydicom 2.4.4. SegmentReader and MultiClassReader read a DICOM segmentation as
# a volume. Each frame has its position, so one expects the slices to be as far apart as the frames are. But the
# spacing is SpacingBetweenSlices, which is optional, or else SliceThickness, which is the width of a slice and not
# the distance to the next: overlapping slices (5 mm thick, each 2.5 mm) are usual in CT, and gaps in MR. A CT has no
# SpacingBetweenSlices, and segmentations of this highdicom then have none either (those of 0.28.2 have one). Two
# frames fall on the same slice, the later one replaces the other, and what is left has the wrong spacing. With gaps,
# there are empty slices in between. There is no warning. If both are equal, all is right. No thread about it was
# found in pydicom-seg; in dcmqi#89, it was said that the thickness is never to be used for this.
#
# Seen (a lesion of 40 voxels of 1 mm x 1 mm in each of 8 slices; both readers):
#   thickness  distance  slices  voxels      spacing  volume     true volume
#   2.5        2.5       8       320 of 320  2.5      800 mm3    800 mm3
#   5          2.5       5       200 of 320  5        1000 mm3   800 mm3
#   1          5         36      320 of 320  1        320 mm3    1600 mm3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==1.26.4 pydicom==2.4.4 SimpleITK==2.5.7 highdicom==0.22.0 pydicom-seg==0.4.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import highdicom
import numpy as np
import pydicom
import pydicom_seg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

mask = np.zeros((16, 24, 32), np.uint8)
mask[4:12, 5:10, 6:14] = 1


def scan(thickness, distance):
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(len(mask)):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, generate_uid()
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
        item.PatientID, item.PatientName, item.Modality, item.PositionReferenceIndicator = "1", "A", "CT", ""
        for empty in (
            *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
            *("ReferringPhysicianName", "Manufacturer"),
        ):
            setattr(item, empty, "")
        item.SeriesNumber, item.InstanceNumber = 1, number + 1
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [-10, -20, 100 + distance * number]
        item.PixelSpacing, item.SliceThickness = [1, 1], thickness
        item.Rows, item.Columns = mask.shape[1:]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
        item.RescaleSlope, item.RescaleIntercept = 1, 0
        item.PixelData = bytes(2 * mask[0].size)
        yield item


def write(thickness, distance):
    tissue, manual = codes.cid7150.Tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    segment = highdicom.seg.SegmentDescription(1, "lesion", tissue, tissue, manual)
    source = list(scan(thickness, distance))
    identifiers = generate_uid(), 2, generate_uid(), 1, "maker", "model", "1", "1"
    highdicom.seg.Segmentation(source, mask, "BINARY", [segment], *identifiers).save_as("lesion.dcm")
    return pydicom.dcmread("lesion.dcm")


def read(file, reader):
    result = reader().read(file)
    return (result.segment_data(1) if reader is pydicom_seg.SegmentReader else result.data), result.spacing


expected = {(2.5, 2.5): (8, 320, 2.5), (5, 2.5): (5, 200, 5), (1, 5): (36, 320, 1)}
for (thickness, distance), values in expected.items():
    file = write(thickness, distance)
    places = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in file.PerFrameFunctionalGroupsSequence]
    assert np.allclose(abs(np.diff(places)), distance) and file.pixel_array.sum() == mask.sum() == 320
    for reader in pydicom_seg.SegmentReader, pydicom_seg.MultiClassReader:
        volume, spacing = read(file, reader)
        seen = len(volume), int(volume.sum()), spacing[2]
        sizes = volume.sum() * np.prod(spacing), mask.sum() * distance
        print(thickness, distance, "slices, voxels, spacing", seen, "volume", sizes[0], "true", sizes[1])
        assert seen == values, "the behaviour has changed"
END
