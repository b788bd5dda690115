"""Which files form a case to segment."""

import logging

import pytest

from attn3d.segmentation import FileError, find_dataset
from attn3d.segmentation.datasets import find_scans
from tests.segmentation import layouts


def found(folder, images, *files):
    """Cases by name, and problems by file name."""
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_bytes(b"")
    cases, failed = find_scans(folder, images)
    assert all(path.startswith(f"{folder}/") for path in failed)
    return {case.name: [path.name for path in case.images] for case in cases}, {
        path.rpartition("/")[2]: problem for path, problem in failed.items()
    }


def test_a_case_of_two_images_has_exactly_two_channels(tmp_path):
    cases, failed = found(
        tmp_path / "scans", 2,
        "a_0000.nii.gz", "a_0001.nii.gz",
        "patient_2019.nii.gz", "patient_2020.nii.gz",
        "b_0001.nii.gz", "b_0002.nii.gz",
        "c_0000.nii", "c_0001.nii", "c_0002.nii",
        "p.nii", "p.nii.gz",
        "single.nii.gz",
    )  # fmt: skip
    assert cases == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "single": ["single.nii.gz"]}
    for names, has in {
        ("patient_2019.nii.gz", "patient_2020.nii.gz"): "2019, 2020",
        ("b_0001.nii.gz", "b_0002.nii.gz"): "0001, 0002",
        ("c_0000.nii", "c_0001.nii", "c_0002.nii"): "0000, 0001, 0002",
    }.items():
        for name in names:
            assert failed.pop(name) == f"its case has the channels {has}, but needs 0000, 0001"
    assert failed.pop("p.nii") == "also exists as p.nii.gz; remove one of them"
    assert failed.pop("p.nii.gz") == "also exists as p.nii; remove one of them"
    assert not failed


def test_a_case_of_one_image_may_have_no_number(tmp_path):
    cases, failed = found(
        tmp_path / "scans", 1,
        "a.nii.gz", "b_0000.nii", "patient_2019.NII.GZ",
        "c_0000.nii.gz", "c_0001.nii.gz",
        "d.nii.gz", "d_0000.nii.gz",
        "p.nii", "p.nii.gz",
    )  # fmt: skip
    assert cases == {"a": ["a.nii.gz"], "b": ["b_0000.nii"], "patient_2019": ["patient_2019.NII.GZ"]}
    for name in ("c_0000.nii.gz", "c_0001.nii.gz"):
        assert failed.pop(name) == "its case has the channels 0000, 0001, but needs 0000"
    assert failed.pop("d.nii.gz") == "also exists as d_0000.nii.gz; remove one of them"
    assert sorted(failed) == ["p.nii", "p.nii.gz"]


def test_files_that_are_left_out_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "attn3d"):
        found(tmp_path / "scans", 1, "a.nii.gz", "b.mgz")
        assert "b.mgz: is not NIfTI" in caplog.text
        layouts.instance2022(tmp_path / "dataset")
        layouts.write(tmp_path / "dataset/train/label/097.nii.gz", layouts.marks(1))
        cases, failed = find_scans(tmp_path / "dataset", 1)
    assert [case.name for case in cases] == ["101", "095", "096"]
    assert not failed
    assert "097.nii.gz: has no image" in caplog.text


def test_a_series_beside_scans_of_another_format_is_left_out(tmp_path, caplog):
    layouts.dicom_series(tmp_path / "scans")
    slices = sorted(path.name for path in (tmp_path / "scans").iterdir())
    with caplog.at_level(logging.WARNING, "attn3d"):
        cases, failed = found(tmp_path / "scans", 1, "a.nii.gz", "damaged.dcm")
    assert (sorted(cases), failed) == (["a"], {})
    assert "damaged.dcm: is not NIfTI" in caplog.text
    assert f"the DICOM files in {tmp_path / 'scans'}, since it has files of other formats" in caplog.text
    assert not any(f"{name}: is not NIfTI" in caplog.text for name in slices)


def test_labels_beside_their_scans_are_left_out(tmp_path, caplog):
    files = ("a.nii.gz", "a_label.nii.gz", "b_0000.nii.gz", "b_seg.nii", "c_mask.nii.gz", "d_0000_mask.nii")
    cases, failed = found(tmp_path / "scans", 1, *files, "d_0000.nii")
    assert sorted(cases) == ["a", "b", "c_mask", "d"]  # c_mask is the only file of its case
    assert not failed
    for name in ("a_label.nii.gz", "b_seg.nii", "d_0000_mask.nii"):
        assert f"{name}: is the label of another file" in caplog.text


def test_a_scan_may_be_called_none(tmp_path):
    cases, failed = found(tmp_path / "scans", 1, "None_0000.nii.gz", "a_0000.nii.gz", "b.nii.gz")
    assert sorted(cases) == ["None", "a", "b"]
    assert not failed


def test_an_incomplete_case_of_a_data_set_is_a_failure(tmp_path):
    layouts.nnunet(tmp_path)
    layouts.write(tmp_path / "imagesTs/BRATS_4_0001.nii.gz", layouts.units(41))
    cases, failed = find_scans(tmp_path, 2)
    assert [case.name for case in cases] == ["BRATS_3", "BRATS_1", "BRATS_2"]
    file = str(tmp_path / "imagesTs/BRATS_4_0001.nii.gz")
    assert failed == {file: "its case has the channels 0001, but needs 0000, 0001"}


def test_a_missing_file_of_a_decathlon_is_a_failure(tmp_path):
    layouts.decathlon(tmp_path)
    (tmp_path / "imagesTs/spleen_3.nii.gz").unlink()
    cases, failed = find_scans(tmp_path, 1)
    assert [case.name for case in cases] == ["spleen_1", "spleen_2"]
    assert failed == {str(tmp_path / "imagesTs/spleen_3.nii.gz"): "is in dataset.json, but does not exist"}


def test_a_name_with_and_without_a_label_is_refused(tmp_path):
    """Both cases would be written to one file."""
    layouts.nnunet(tmp_path)
    for channel in (0, 1):
        layouts.write(tmp_path / f"imagesTs/BRATS_1_{channel:04d}.nii.gz", layouts.units(9))
    with pytest.raises(FileError, match="has two cases with the name 'BRATS_1', with and without a label"):
        find_scans(tmp_path, 2)


def test_a_file_has_the_name_that_it_has_in_its_folder(tmp_path):
    found(tmp_path / "scans", 1, "y_0000.nii.gz")
    for scans in (tmp_path / "scans", tmp_path / "scans" / "y_0000.nii.gz"):
        assert [case.name for case in find_scans(scans, 1)[0]] == ["y"]
    assert [case.name for case in find_scans(tmp_path / "scans" / "y_0000.nii.gz", 2)[0]] == ["y_0000"]


@pytest.mark.parametrize("folders", [("imagesTr", "labelsTr"), ("images", "labels")])
def test_images_without_a_label_are_segmented(folders, tmp_path, caplog):
    for part, names in zip((*folders, "imagesTs"), ("ab", "ax", "c"), strict=True):
        for name in names:
            layouts.write(tmp_path / part / f"{name}.nii.gz", layouts.marks(1, 2))
    with caplog.at_level(logging.WARNING, "attn3d"):
        cases, failed = find_scans(tmp_path, 1)
    assert [case.name for case in cases] == ["b", "c", "a"]
    assert not failed
    assert [record.args for record in caplog.records] == [(str(tmp_path / folders[1] / "x.nii.gz"), "has no image")]
    assert find_dataset(tmp_path).problems[str(tmp_path / folders[0] / "b.nii.gz")] == "has no label"


def test_a_test_image_with_the_name_of_another_scan_is_left_out(tmp_path):
    for part, names in zip(("imagesTr", "labelsTr", "imagesTs"), ("ab", "a", "abc"), strict=True):
        for name in names:
            layouts.write(tmp_path / part / f"{name}.nii.gz", layouts.marks(1, 2))
    assert [case.name for case in find_scans(tmp_path, 1)[0]] == ["b", "c", "a"]
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a"]
    for name in "ab":
        assert dataset.problems[str(tmp_path / "imagesTs" / f"{name}.nii.gz")] == "has the name of another scan"


def test_folders_beside_scans_are_named(tmp_path, caplog):
    layouts.write(tmp_path / "patient/study/x.nii.gz", layouts.units(1))
    layouts.dicom_series(tmp_path / "series")
    (tmp_path / "notes").mkdir()
    (tmp_path / "unpacked.nii.gz").mkdir()  # a failure of its own when it is read
    with caplog.at_level(logging.WARNING, "attn3d"):
        cases, _ = found(tmp_path, 1, "a.nii.gz")
    assert list(cases) == ["a", "unpacked"]
    named = [record.args[0] for record in caplog.records]
    assert named == [tmp_path / name for name in ("notes", "patient", "series")]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
def test_a_file_is_a_case_by_its_name(tmp_path, ending):
    (tmp_path / f"scan.x{ending}").write_bytes(b"")
    cases, _ = find_scans(tmp_path / f"scan.x{ending}", 1)
    assert [case.name for case in cases] == ["scan.x"]
