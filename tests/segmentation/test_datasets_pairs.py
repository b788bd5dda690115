"""Pairs of images and labels without a description."""

import numpy as np
import pytest

from attn3d.segmentation import FileError, find_dataset
from tests.segmentation import layouts


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
    assert [case.name for case in find_dataset(tmp_path).test_cases] == ["1_0000", "2_0000"]
