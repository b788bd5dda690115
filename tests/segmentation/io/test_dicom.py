"""A DICOM series is read as one volume with the positions and slopes in its headers, or raises an error."""

import locale
import logging
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from attn3d.segmentation import FileError, read_image, write_label
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.io.dicom import is_dicom
from tests.segmentation import layouts
from tests.segmentation.layouts import change_header
from tests.segmentation.volumes import AFFINES, affine_of, rotation

TILTED = affine_of(rotation(0.3, -0.2) @ np.array([[-1.5, 0, 0], [0, 1.5, 0.8], [0, 0, 3.0]]))


def assert_same_places(image, data, affine):
    """Compares the values at the same places in mm, whatever the order of the slices."""
    at = np.indices(data.shape).reshape(3, -1).T
    found = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, at)
    np.testing.assert_allclose(found, np.rint(found), atol=2e-3)
    np.testing.assert_allclose(image.get_fdata()[tuple(np.rint(found).astype(int).T)], data.ravel(), rtol=1e-6)


@pytest.mark.parametrize("affine", [AFFINES["oblique"], AFFINES["RAS"], TILTED], ids=["oblique", "straight", "tilted"])
def test_every_slice_is_at_the_position_in_its_header(affine, tmp_path):
    """For a tilted gantry the affine is sheared, as in dcm2niix."""
    before = locale.setlocale(locale.LC_ALL)
    data, affine = layouts.dicom_series(tmp_path, affine)
    image = read_image(tmp_path)
    assert_same_places(image, data, affine)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["sform_code"]) == 1
    assert int(image.header["qform_code"]) == (0 if affine is TILTED else 1), "a qform cannot have a shear"
    assert locale.setlocale(locale.LC_ALL) == before, "reading must not change the locale"


def test_a_label_of_a_tilted_series_lies_on_it(tmp_path):
    layouts.dicom_series(tmp_path / "series", TILTED)
    image = read_image(tmp_path / "series")
    write_label(tmp_path / "label.nii.gz", (image.get_fdata() > 0).astype(int), like=image)
    np.testing.assert_allclose(nib.load(tmp_path / "label.nii.gz").affine, image.affine, atol=1e-5)


def test_every_slice_has_its_own_slope(tmp_path):
    """The first slope is an integer; the other slices must not be rounded."""
    data, affine = layouts.dicom_series(tmp_path)
    expected = data.astype(np.float64)
    for index in range(1, data.shape[2]):
        slope = 0.37 + index / 100
        change_header(tmp_path / f"IM{index:03d}.dcm", RescaleSlope=f"{slope:.2f}")
        expected[..., index] = (expected[..., index] + 1024) * slope - 1024
    assert_same_places(read_image(tmp_path), expected, affine)


@pytest.mark.parametrize("empty", [None, ""], ids=["missing", "empty"])
def test_without_rescale_values_nothing_is_rescaled(tmp_path, empty):
    data, affine = layouts.dicom_series(tmp_path)
    for path in tmp_path.iterdir():
        change_header(path, RescaleSlope=empty, RescaleIntercept=empty)
    assert_same_places(read_image(tmp_path), data.astype(np.float64) + 1024, affine)


def test_values_that_are_displayed_inverted_are_not_inverted(tmp_path):
    """MONOCHROME1 only says that low values are white. GDCM inverts the stored values."""
    data, affine = layouts.dicom_series(tmp_path)
    for path in tmp_path.iterdir():
        change_header(path, PhotometricInterpretation="MONOCHROME1")
    assert_same_places(read_image(tmp_path), data, affine)


@pytest.mark.parametrize("name", ["ct_head_philips", "mr_philips_enhanced"])
def test_real_values_that_are_displayed_inverted_are_not_inverted(name, shared_data, tmp_path):
    """Unsigned values of 12 bits, one file per slice and all slices in one file."""
    for path in sorted((shared_data / name).iterdir())[-2:]:
        shutil.copy(path, tmp_path)
    expected = read_image(tmp_path).get_fdata()
    for path in tmp_path.iterdir():
        change_header(path, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_image(tmp_path).get_fdata(), expected, rtol=1e-6, atol=1e-4)


def one_slice(folder, **values):
    layouts.dicom_series(folder)
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    change_header(folder / "IM000.dcm", **values)
    return folder


@pytest.mark.parametrize(
    ("values", "spacing"),
    [
        ({"SliceThickness": "5", "SpacingBetweenSlices": None}, 5),
        ({"SliceThickness": "5", "SpacingBetweenSlices": "6"}, 6),
        ({"SliceThickness": None, "SpacingBetweenSlices": "-2.5"}, 2.5),
    ],
    ids=str,
)
def test_one_slice_has_the_thickness_in_its_header(values, spacing, tmp_path):
    image = read_image(one_slice(tmp_path, **values))
    assert image.shape[2] == 1
    assert nib.affines.voxel_sizes(image.affine)[2] == pytest.approx(spacing)


def test_one_slice_without_a_thickness_is_refused(tmp_path):
    with pytest.raises(FileError, match="is one slice without a thickness"):
        read_image(one_slice(tmp_path, SliceThickness=None, SpacingBetweenSlices=None))


def repeated(folder, times):
    """Writes a series in time: `times` volumes at the same places."""
    layouts.dicom_series(folder)
    for path in sorted(folder.iterdir()):
        for time in range(1, times):
            copy = folder / f"{path.stem}_{time}.dcm"
            shutil.copy(path, copy)
            change_header(copy, SOPInstanceUID=generate_uid())


def test_several_volumes_at_one_place_are_refused(tmp_path):
    repeated(tmp_path / "series", 3)
    with pytest.raises(FileError, match=r"contains 15 slices at 5 positions, 3 at each \(a series in time, of echoes"):
        read_image(tmp_path / "series")
    repeated(tmp_path / "one place", 2)
    for path in sorted((tmp_path / "one place").iterdir())[2:]:
        path.unlink()
    with pytest.raises(FileError, match="contains 2 slices at 1 position, 2 at each"):
        read_image(tmp_path / "one place")
    next((tmp_path / "series").glob("*_1.dcm")).unlink()
    with pytest.raises(FileError, match="contains 14 slices at 5 positions, 2 to 3 at each"):
        read_image(tmp_path / "series")


def test_a_mosaic_is_refused(tmp_path):
    layouts.dicom_series(tmp_path)
    change_header(tmp_path / "IM001.dcm", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    with pytest.raises(FileError, match=r"IM001.dcm: is a mosaic: .* convert it with dcm2niix"):
        read_image(tmp_path)


def test_frames_without_positions_are_refused(tmp_path):
    layouts.dicom_series(tmp_path)
    change_header(tmp_path / "IM001.dcm", NumberOfFrames=3)
    with pytest.raises(FileError, match=r"IM001.dcm: has 3 frames without the position of each; convert it with dcm2n"):
        read_image(tmp_path)


def test_a_lost_slice_is_refused_with_its_neighbours(tmp_path):
    layouts.dicom_series(tmp_path, skip=2)
    with pytest.raises(FileError, match=r"IM003.dcm to IM001.dcm is 6 mm, and between other slices 3 mm: a slice"):
        read_image(tmp_path)


def test_slices_that_do_not_form_a_stack_are_refused(tmp_path):
    layouts.dicom_series(tmp_path / "turned")
    change_header(tmp_path / "turned/IM002.dcm", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    with pytest.raises(FileError, match=r"IM000.dcm and IM002.dcm have different directions"):
        read_image(tmp_path / "turned")
    layouts.dicom_series(tmp_path / "shifted", AFFINES["RAS"])
    header = pydicom.dcmread(tmp_path / "shifted/IM002.dcm")
    x, y, z = header.ImagePositionPatient
    change_header(tmp_path / "shifted/IM002.dcm", ImagePositionPatient=[x + 4, y, z])
    with pytest.raises(FileError, match="up to 4 mm off a straight line"):
        read_image(tmp_path / "shifted")


def test_two_series_are_listed_with_their_descriptions(tmp_path):
    layouts.dicom_series(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        change_header(path, SeriesDescription="HEAD 5MM")
    change_header(tmp_path / "IM004.dcm", SeriesInstanceUID=generate_uid(), SeriesDescription="SCOUT")
    with pytest.raises(FileError, match=r"contains 2 DICOM series \(CT 'HEAD 5MM', 4 files; CT 'SCOUT', 1 file\)"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("kind", "removed", "says"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", (), "is not a scan (Segmentation Storage)"),
        ("1.2.840.10008.5.1.4.1.1.88.33", ("Rows",), "is not a scan (Comprehensive SR Storage)"),
        ("1.2.840.10008.5.1.4.1.1.7", ("ImagePositionPatient",), "its header has no position"),
    ],
)
def test_files_that_are_not_slices_are_named_and_left_out(kind, removed, says, tmp_path, caplog):
    data, affine = layouts.dicom_series(tmp_path)
    shutil.copy(tmp_path / "IM000.dcm", tmp_path / "other.dcm")
    header = change_header(tmp_path / "other.dcm", SeriesInstanceUID=generate_uid(), **dict.fromkeys(removed))
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = kind
    header.save_as(tmp_path / "other.dcm")
    with caplog.at_level(logging.WARNING, "attn3d"):
        assert_same_places(read_image(tmp_path), data, affine)
    assert f"left out: {tmp_path / 'other.dcm'}: " in caplog.text
    assert says in caplog.text
    for path in tmp_path.glob("IM*.dcm"):
        path.unlink()
    with pytest.raises(FileError, match=r"is a folder without a DICOM series \(other.dcm is not a s"):
        read_image(tmp_path)
    with pytest.raises(FileError, match=r"contains no DICOM series \(other.dcm is not a s"):
        read_image(tmp_path / "other.dcm")


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize("length", [150, 400, 600, -20], ids=["preamble", "start", "header", "voxels"])
def test_a_damaged_slice_is_named_at_any_position(index, length, tmp_path):
    """Also the last slice, which leaves no gap."""
    layouts.dicom_series(tmp_path)
    path = tmp_path / f"IM{index:03d}.dcm"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError) as error:
        read_image(tmp_path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("lost", "says"), [(0, "is empty, but has a name"), (132, "is not DICOM, but has a name")])
@pytest.mark.parametrize("name", ["IM{}.dcm", "IM{}", "1.2.840.{}"])
def test_the_last_file_of_an_interrupted_copy_is_refused(name, lost, says, tmp_path):
    """It leaves no gap between the slices."""
    layouts.dicom_series(tmp_path)
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / name.format(index))
    last = tmp_path / name.format(4)
    last.write_bytes(last.read_bytes()[lost:] if lost else b"")
    with pytest.raises(FileError, match=rf"{re.escape(last.name)}: {says}"):
        read_image(tmp_path)


def test_a_series_may_have_other_files_beside_it(tmp_path):
    data, affine = layouts.dicom_series(tmp_path)
    for name in ("notes.txt", "series.json", "labels.nii.gz", ".IM005.dcm", "README"):
        (tmp_path / name).touch()
    (tmp_path / "more.dcm").mkdir()
    assert_same_places(read_image(tmp_path), data, affine)


@pytest.mark.parametrize("name", ["IM{}", "1.2.840.{}"])
def test_files_without_an_ending_may_be_beside_slices_without_one(name, tmp_path):
    data, affine = layouts.dicom_series(tmp_path)
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / name.format(index))
    for other in ("README", "LOCKFILE"):
        (tmp_path / other).touch()
    assert_same_places(read_image(tmp_path), data, affine)


def test_other_files_are_not_dicom(tmp_path):
    (tmp_path / "short").write_bytes(b"DICM")
    assert not is_dicom(tmp_path / "short")
    assert not is_dicom(tmp_path)
    with pytest.raises(FileError, match="is a folder without a DICOM series; give a NIfTI file"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, "does not have the positions of its slices (position or or"),
        ({"PixelSpacing": None}, "IM001.dcm: its header does not have the positions of its slices"),
    ],
    ids=["a direction of no length", "no spacing"],
)
def test_a_header_without_a_position_is_refused(values, message, tmp_path):
    layouts.dicom_series(tmp_path)
    change_header(tmp_path / "IM001.dcm", **values)
    with np.errstate(invalid="ignore"), pytest.raises(FileError, match=re.escape(message)):
        read_image(tmp_path)


def test_slices_of_different_sizes_are_refused(tmp_path):
    layouts.dicom_series(tmp_path)
    header = pydicom.dcmread(tmp_path / "IM002.dcm")
    change_header(tmp_path / "IM002.dcm", Rows=header.Rows - 1, PixelData=header.PixelData[: -2 * header.Columns])
    with pytest.raises(FileError, match=r"its slices have different sizes: IM00\d.dcm differs from IM00\d.dcm$"):
        read_image(tmp_path)


def test_colours_are_refused(tmp_path):
    layouts.dicom_series(tmp_path)
    for path in tmp_path.iterdir():
        header = pydicom.dcmread(path)
        colours = np.zeros((header.Rows, header.Columns, 3), np.uint8)
        depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "PlanarConfiguration": 0}
        change_header(path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PixelData=colours.tobytes(), **depth)
    with pytest.raises(FileError, match=r"IM00\d.dcm: contains colours, not intensities; convert it with dcm2niix"):
        read_image(tmp_path)


def test_a_tree_of_patients_is_walked(tmp_path):
    for patient in ("P1", "P2"):
        layouts.dicom_series(tmp_path / patient / "study" / "CT")
    layouts.dicom_series(tmp_path / "P3")
    layouts.dicom_series(tmp_path / "P4")
    change_header(tmp_path / "P4/IM000.dcm", SeriesInstanceUID=generate_uid(), SeriesDescription="SCOUT")
    layouts.dicom_series(tmp_path / "P5")
    (tmp_path / "P5/IM000.dcm").write_bytes((tmp_path / "P5/IM000.dcm").read_bytes()[:600])
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.test_cases] == ["P1_study_CT", "P2_study_CT", "P3"]
    assert read_image(dataset.test_cases[1].images[0]).shape == layouts.SHAPE
    assert len(dataset.left_out) == 2
    assert (
        "P4: contains 2 DICOM series (CT 'SCOUT', 1 file; CT 'without a description', 4 files)" in dataset.left_out[0]
    )
    assert "P5/IM000.dcm: its header is damaged or incomplete" in dataset.left_out[1]


def test_links_to_folders_are_followed(tmp_path):
    layouts.dicom_series(tmp_path / "elsewhere" / "CT")
    layouts.dicom_series(tmp_path / "scans" / "P1")
    (tmp_path / "scans" / "P2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scans" / "P1" / "again").symlink_to(tmp_path / "scans")
    assert [case.name for case in find_dataset(tmp_path / "scans").test_cases] == ["P1", "P2_CT"]


# Folders of real files, with their shape and voxel sizes, or with the expected error.
REAL = {
    "ct_head_philips": ((512, 512, 28), (0.451172, 0.451172, 5.0)),
    "mr_philips_enhanced": ((256, 256, 8), (1.0, 1.0, 1.2)),
    "ct_same_place": r"contains 4 slices at 1 position, 4 at each",
    "ct_tilt_and_gap": r"from IM-0001-0003.dcm to IM-0001-0005.dcm is 1.5 mm, and between other slices 0.75 mm: a",
    "mr_two_mosaics": r"is a mosaic",
}


@pytest.mark.parametrize("name", REAL)
def test_real_series(name, shared_data):
    if isinstance(REAL[name], str):
        with pytest.raises(FileError, match=REAL[name]):
            read_image(shared_data / name)
    else:
        image = read_image(shared_data / name)
        assert image.shape == REAL[name][0]
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), REAL[name][1], rtol=1e-4)


def test_a_real_tilt_without_its_gap_is_read(shared_data, tmp_path):
    """The gantry is tilted by 15.5 degrees; the positions of the slices are straight above each other."""
    for number in (1, 2, 3):
        shutil.copy(shared_data / "ct_tilt_and_gap" / f"IM-0001-000{number}.dcm", tmp_path)
    affine = read_image(tmp_path).affine
    np.testing.assert_allclose(affine[:3, 2], (0, 0, 0.778), atol=1e-6)
    rows = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    assert np.degrees(np.arcsin(abs(rows[2]))) == pytest.approx(15.5, abs=0.01)


def test_a_file_of_several_volumes_is_refused(shared_data, tmp_path):
    (file,) = (shared_data / "mr_philips_enhanced").iterdir()
    assert read_image(file).shape == (256, 256, 8), "the file must be readable like its folder"
    header = pydicom.dcmread(file)
    frames = header.PerFrameFunctionalGroupsSequence
    for one, other in zip(frames[:4], frames[4:], strict=True):
        other.PlanePositionSequence = one.PlanePositionSequence
    header.save_as(tmp_path / "several.dcm")
    with pytest.raises(FileError, match="contains 8 slices at 4 positions, 2 at each"):
        read_image(tmp_path / "several.dcm")
    frames[2].PixelValueTransformationSequence[0].RescaleSlope = "2"
    for number, frame in enumerate(frames):
        frame.PlanePositionSequence = [pydicom.Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [1.2 * number, 0, 0]
    header.save_as(tmp_path / "several.dcm")
    with pytest.raises(FileError, match="its frames have different rescale slopes"):
        read_image(tmp_path / "several.dcm")


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("name", [name for name, expected in REAL.items() if not isinstance(expected, str)])
def test_real_series_equal_dcm2niix(name, shared_data, tmp_path):
    options = ["-z", "n", "-p", "n", "-f", "found", "-o", str(tmp_path)]
    subprocess.run(["dcm2niix", *options, str(shared_data / name)], check=True, capture_output=True)
    other = nib.load(tmp_path / "found.nii")
    assert_same_places(read_image(shared_data / name), other.get_fdata(), other.affine)


def test_a_dicom_folder_without_a_scan_is_not_a_case(tmp_path):
    layouts.dicom_series(tmp_path / "P1")
    layouts.dicom_series(tmp_path / "P2")
    for path in (tmp_path / "P2").iterdir():
        change_header(path, ImagePositionPatient=None)
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.test_cases] == ["P1"]
    assert len(dataset.problems) == len(list((tmp_path / "P2").iterdir()))
    assert all("P2/IM00" in file for file in dataset.problems)
    assert all("is not a slice of a scan" in problem for problem in dataset.problems.values())
