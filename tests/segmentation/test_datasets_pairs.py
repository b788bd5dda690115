"""Pairs of images and labels without a description."""

import numpy as np
import pytest

from attn3d.segmentation import FileError, find_dataset
from attn3d.segmentation.datasets import read_case_image
from tests.segmentation import layouts
from tests.segmentation.layouts import names


def test_all_labels_of_pairs_that_cannot_be_read_are_listed(tmp_path):
    layouts.pairs(tmp_path)
    for name in "12":
        layouts.write(tmp_path / f"labels/{name}.nii.gz", layouts.marks(1, 2).astype(np.int16) + 300)
    with pytest.raises(FileError, match=r"2 files cannot be used: \(1\) .*1.nii.gz: .*; \(2\) .*2.nii.gz: the label"):
        find_dataset(tmp_path)


def test_pairs_whose_labels_are_all_empty_are_for_prediction_only(tmp_path):
    layouts.pairs(tmp_path)
    for name in "12":
        layouts.write(tmp_path / f"labels/{name}.nii.gz", np.zeros_like(layouts.marks(1, 2)))
    assert len(find_dataset(tmp_path).cases) == 2
    with pytest.raises(FileError, match="all voxels of its 2 labels are 0; check the labels"):
        find_dataset(tmp_path, labelled=True)


def test_images_with_the_names_of_nnunet_need_its_layout(tmp_path):
    layouts.pairs(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    with pytest.raises(
        FileError, match=r"images/1_0000\.nii\.gz: has no label, and 1\.nii\.gz has no image: these are"
    ):
        find_dataset(tmp_path, labelled=True)
    assert names(find_dataset(tmp_path).test_cases) == ["1_0000", "2_0000"]


@pytest.mark.parametrize("second", ["1_label.nii.gz", "1_mask.nii", "1_mask.NII.GZ"])
def test_two_labels_of_one_scan_are_refused_with_both_names(tmp_path, second):
    layouts.pairs_side_by_side(tmp_path)
    (tmp_path / second).write_bytes((tmp_path / "1_seg.nii.gz").read_bytes())
    with pytest.raises(FileError, match=r"1_(seg|mask|label).*is a second label of '1', in addition to 1_") as error:
        find_dataset(tmp_path)
    assert second in str(error.value)
    assert "1_seg.nii.gz" in str(error.value)


def test_two_folders_of_labels_are_refused_with_both_names(tmp_path):
    layouts.pairs(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileError, match="has images/ with labels/ and images/ with masks/"):
        find_dataset(tmp_path)


def test_endings_in_capitals_are_read_and_other_formats_named(tmp_path):
    layouts.pairs(tmp_path)
    (tmp_path / "images/1.nii.gz").rename(tmp_path / "images/1.NII.GZ")
    (tmp_path / "images/3.mgz").write_bytes(b"")
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == ["1", "2"]
    assert read_case_image(dataset.cases[0])[0].shape == layouts.SHAPE
    problem = "is not NIfTI, NRRD or MHA; convert it to .nii.gz"
    assert dataset.problems == {str(tmp_path / "images/3.mgz"): problem}
