"""A DICOM SEG has the geometry of its series when highdicom and SimpleITK read it."""

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from attn3d.segmentation import FileError, predict, read_image
from attn3d.segmentation.io.dicom_seg import write_dicom_seg
from attn3d.segmentation.labels import Labels
from tests.segmentation import layouts
from tests.segmentation.layouts import change_header
from tests.segmentation.volumes import AFFINES

LABELS = Labels.of({5: "outer", 2: "inner"})

MAY_BE_EMPTY = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex"]
MAY_BE_EMPTY += ["AccessionNumber", "StudyID", "StudyDate", "StudyTime"]


def simulated(folder, affine=None, **headers):
    """Writes a series with the headers that a DICOM SEG needs and the simulated one lacks."""
    layouts.dicom_series(folder, affine)
    complete = {"FrameOfReferenceUID": "1.2.3.9", "PatientID": "1", "StudyID": "1", "AccessionNumber": ""}
    for file in folder.iterdir():
        change_header(file, **complete | headers)
    return folder


def labels_of(image):
    """Two blocks without any symmetry, and nothing in the last slices."""
    labels = np.zeros(image.shape, np.uint8)
    labels[1 : image.shape[0] // 2, 2 : image.shape[1] // 4, : image.shape[2] // 2] = 2
    labels[image.shape[0] // 2 :, image.shape[1] // 3 :, 1 : image.shape[2] - 1] = 5
    return labels


def in_millimetres(mask, affine):
    """The sorted coordinates of the voxels of a mask."""
    places = nib.affines.apply_affine(affine, np.argwhere(mask))
    return places[np.lexsort(np.round(places, 1).T)]


def assert_reads_back(path, series):
    """Checks the places of all voxels with two readers, and that frames refer to the slices at their places."""
    image = read_image(series)
    labels = labels_of(image)
    write_dicom_seg(path, labels, series, LABELS)
    seg = highdicom.seg.segread(path)
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["inner", "outer"]
    headers = {}
    for file in [series] if series.is_file() else series.iterdir():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        headers[header.SOPInstanceUID] = header
    assert next(iter(headers.values())).FrameOfReferenceUID == seg.FrameOfReferenceUID

    volume = seg.get_volume(combine_segments=True)
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    from_itk = sitk.ReadImage(str(path))  # one frame for each segment and slice
    assert from_itk.GetSize()[2] == seg.NumberOfFrames
    pixels = sitk.GetArrayFromImage(from_itk)
    for number, value in enumerate(LABELS.present, 1):
        expected = in_millimetres(labels == value, image.affine)
        found = in_millimetres(volume.array == number, affine)
        np.testing.assert_allclose(found, expected, atol=0.02)
        frames = seg.PerFrameFunctionalGroupsSequence
        count = sum(
            int(pixels[index].astype(bool).sum())
            for index, frame in enumerate(frames)
            if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        )
        assert count == (labels == value).sum()
    if series.is_dir():
        for frame in seg.PerFrameFunctionalGroupsSequence:
            [source] = frame.DerivationImageSequence[0].SourceImageSequence
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(
                position, headers[source.ReferencedSOPInstanceUID].ImagePositionPatient, atol=1e-3
            )


@pytest.mark.parametrize("geometry", ["RAS", "oblique"])
def test_a_simulated_series(geometry, tmp_path):
    assert_reads_back(tmp_path / "seg.dcm", simulated(tmp_path / "series", AFFINES[geometry]))


def test_a_real_series(shared_data, tmp_path):
    assert_reads_back(tmp_path / "seg.dcm", shared_data / "ct_head_philips")


def test_names_in_any_script(tmp_path):
    """Also if the series declares no character set."""
    series = simulated(tmp_path / "series", SpecificCharacterSet=None)
    write_dicom_seg(tmp_path / "seg.dcm", labels_of(read_image(series)), series, Labels.of({2: "肿瘤", 5: "Ödem"}))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["肿瘤", "Ödem"]


def test_predict_writes_one_beside_its_labels(run, tmp_path):
    series = simulated(tmp_path / "series")
    found = predict(run.folder, series, tmp_path / "out", dicom_seg=True, quiet=True)
    [path] = found.written.values()
    seg = highdicom.seg.segread(path.with_name(path.name.replace(".nii.gz", ".dcm")))
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["bright", "brightest"]
    labels = np.asarray(nib.load(path).dataobj)
    assert labels.any(), "the comparison needs labels"
    volume = seg.get_volume(combine_segments=True).array
    assert [(volume == one).sum() for one in (1, 2)] == [(labels == value).sum() for value in (2, 5)]


def test_a_series_that_a_seg_cannot_refer_to_is_refused(tmp_path):
    series = simulated(tmp_path / "series", FrameOfReferenceUID=None, StudyInstanceUID=None)
    labels = np.zeros(layouts.SHAPE, np.uint8)
    with pytest.raises(FileError, match=r"series: a DICOM SEG cannot refer to it \(.*StudyInstanceUID"):
        write_dicom_seg(tmp_path / "seg.dcm", labels, series, LABELS)
    assert not (tmp_path / "seg.dcm").exists()


def test_segments_of_regions_overlap(tmp_path):
    series = simulated(tmp_path / "series")
    segmentation = labels_of(read_image(series))
    long = "whole haemorrhage with the parts that have broken into the ventricles"
    regions = Labels((long, "core"), ((2, 5), (5,)), (2, 5))
    write_dicom_seg(tmp_path / "seg.dcm", segmentation, series, regions)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == [long[:64], "core"], "as long as DICOM allows"
    assert seg.ContentDescription == long[:64]
    for number, (_, mask) in enumerate(regions.masks(segmentation), 1):
        volume = seg.get_volume(segment_numbers=[number])
        found = in_millimetres(volume.array[..., 0] > 0, np.diag([-1, -1, 1, 1]) @ volume.affine)
        np.testing.assert_allclose(found, in_millimetres(mask, read_image(series).affine), atol=0.02)


def test_values_in_any_order(tmp_path):
    series = simulated(tmp_path / "series")
    segmentation = np.zeros(layouts.SHAPE, np.uint8)
    segmentation[1:3], segmentation[4:7] = 2, 5
    write_dicom_seg(tmp_path / "seg.dcm", segmentation, series, Labels(("outer", "inner"), ((5,), (2,))))
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True).array
    assert [(volume == one).sum() for one in (1, 2)] == [(segmentation == value).sum() for value in (5, 2)]


def test_a_patient_whose_name_has_one_part_is_no_warning(tmp_path, recwarn):
    series = simulated(tmp_path / "series", PatientName="ANONYMOUS")
    recwarn.clear()
    write_dicom_seg(tmp_path / "seg.dcm", labels_of(read_image(series)), series, LABELS)
    assert not list(recwarn)


def test_an_anonymised_series_may_lack_headers(tmp_path):
    """Those that may be empty in DICOM."""
    assert_reads_back(tmp_path / "seg.dcm", simulated(tmp_path / "series", **dict.fromkeys(MAY_BE_EMPTY)))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert not any(seg[name].value for name in MAY_BE_EMPTY)


def test_without_a_seg_the_labels_are_written(run, tmp_path):
    """With all other files, and the series is listed as failed."""
    series = simulated(tmp_path / "series", FrameOfReferenceUID=None)
    options = {"dicom_seg": True, "preview": True, "statistics": True, "quiet": True}
    found = predict(run.folder, series, tmp_path / "out", **options)
    [(path, problem)] = found.failed.items()
    assert path == str(series)
    assert problem.startswith("a DICOM SEG cannot refer to it (Source images have no Frame Of Reference UID")
    names = ["series.html", "series.nii.gz", "series.png", "statistics.csv"]
    assert [*found.written] == [*found.volume_ml] == ["series"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_seg_of_a_multi_frame_file_whose_frames_descend(shared_data, tmp_path):
    (file,) = (shared_data / "mr_philips_enhanced").iterdir()
    header = pydicom.dcmread(file)
    frames = header.PerFrameFunctionalGroupsSequence
    places = [frame.PlanePositionSequence for frame in frames]
    for frame, place in zip(frames, places[::-1], strict=True):
        frame.PlanePositionSequence = place
    header.FrameOfReferenceUID, header.PatientSex, header.PatientBirthDate = "1.2.3.9", "", ""
    for name in ("AccessionNumber", "StudyTime", "ReferringPhysicianName"):
        setattr(header, name, header.get(name, ""))
    shared = header.SharedFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):  # highdicom needs them there
        setattr(shared, name, getattr(frames[0], name))
    header.save_as(tmp_path / "series.dcm")
    assert_reads_back(tmp_path / "seg.dcm", tmp_path / "series.dcm")
