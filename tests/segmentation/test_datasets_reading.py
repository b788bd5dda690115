"""The images and the labels of a case are read on one grid."""

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError
from attn3d.segmentation.datasets import find_dataset, read_case_image, read_case_label
from tests.segmentation import layouts


def test_channels_are_in_order(tmp_path):
    layouts.nnunet(tmp_path)
    first, second = read_case_image(find_dataset(tmp_path).cases[1])
    np.testing.assert_array_equal(first.get_fdata(), layouts.units(20))
    np.testing.assert_array_equal(second.get_fdata(), layouts.units(21))


def test_a_channel_may_have_its_axes_in_another_order(tmp_path):
    layouts.nnunet(tmp_path)
    case = find_dataset(tmp_path).cases[0]
    expected = read_case_image(case)
    nib.save(expected[1].as_reoriented([[2, 1], [0, -1], [1, 1]]), case.images[1])
    for one, other in zip(read_case_image(case), expected, strict=True):
        np.testing.assert_array_equal(one.dataobj, other.dataobj)
        np.testing.assert_allclose(one.affine, other.affine)


def test_a_channel_off_the_grid_and_an_unknown_value_are_refused(tmp_path):
    layouts.nnunet(tmp_path)
    dataset = find_dataset(tmp_path)
    case = dataset.cases[0]
    image = read_case_image(case)[0]
    layouts.write(case.label[0], layouts.marks(0, 4))
    with pytest.raises(FileError, match="value 3; map its values to 0, 1, 2"):
        read_case_label(case, dataset, image)
    layouts.write(case.images[1], layouts.units(1)[1:])
    with pytest.raises(FileError, match="resample it to that grid") as error:
        read_case_image(case)
    assert str(error.value).startswith(str(case.images[1]))
    assert f"but {case.images[0]} has" in error.value.problem
    with pytest.raises(FileError, match="has no label"):
        read_case_label(dataset.test_cases[0], dataset, image)


def test_masks_with_other_values_are_thresholded(tmp_path):
    layouts.ct_ich(tmp_path)
    dataset = find_dataset(tmp_path)
    label = read_case_label(dataset.cases[0], dataset, read_case_image(dataset.cases[0])[0])
    np.testing.assert_array_equal(label.dataobj, layouts.marks(49, 2))


@pytest.mark.parametrize(
    ("votes", "elected"),
    [((1, 1, 2), 1), ((0, 4, 4), 4), ((0, 0, 5), 0), ((1, 2, 3), 1), ((0, 3, 5), 0), ((5, 5, 5), 5)],
)
def test_the_majority_of_raters_or_else_the_smaller_value_wins(tmp_path, votes, elected):
    layouts.mbh_seg(tmp_path)
    for rater, value in enumerate(votes, start=1):
        layouts.write(tmp_path / f"case_1/label_annot_{rater}.nii.gz", np.full(layouts.SHAPE, value, np.uint8))
    dataset = find_dataset(tmp_path)
    case = dataset.cases[0]
    assert len(case.label) == 3
    label = read_case_label(case, dataset, read_case_image(case)[0])
    assert (np.asarray(label.dataobj) == elected).all()


def test_a_patient_without_haemorrhage_is_a_case(tmp_path):
    layouts.instance2022(tmp_path)
    layouts.write(tmp_path / "train/label/095.nii.gz", np.zeros(layouts.SHAPE, np.uint8))
    dataset = find_dataset(tmp_path)
    label = read_case_label(dataset.cases[0], dataset, read_case_image(dataset.cases[0])[0])
    assert not np.asarray(label.dataobj).any()
