"""Labels have the grid and the values that they must have, or raise an error of one line."""

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, read_image, read_segmentation
from attn3d.segmentation.io.files import on_grid_of
from tests.segmentation.volumes import DATA, scan


def test_a_label_may_be_empty(tmp_path, image):
    path = tmp_path / "label.nii.gz"
    nib.save(scan(np.zeros(DATA.shape, np.int16), image.affine), path)
    assert not np.asarray(read_segmentation(path, image, range(4)).dataobj).any()


def test_a_mask_with_other_values_is_thresholded(tmp_path, image):
    mask = np.zeros(DATA.shape, np.float32)
    mask[1:3], mask[4], mask[5] = 0.99607843, 0.05, 254.9
    nib.save(scan(mask, image.affine), tmp_path / "mask.nii.gz")
    label = read_segmentation(tmp_path / "mask.nii.gz", image, [0, 1], threshold=0.1)
    np.testing.assert_array_equal(np.asarray(label.dataobj), mask > 0.1)
    mask[0, 0, 0] = np.nan
    nib.save(scan(mask, image.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(FileError, match="NaN or infinite"):
        read_segmentation(tmp_path / "mask.nii.gz", image, [0, 1], threshold=0.1)


def test_labels_close_to_whole_numbers_are_rounded(tmp_path):
    """Such as a float label that was saved with a scaled integer type."""
    data = np.zeros((5, 5, 5), np.float32)
    data[1:3], data[3] = 1.0000001, 2.0004
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "label.nii")
    label = read_segmentation(tmp_path / "label.nii", values=[0, 1, 2])
    assert np.array_equal(np.asarray(label.dataobj), np.rint(data))
    data[3] = 2.002
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "label.nii")
    with pytest.raises(FileError, match=r"the label contains the value 2\.002; map its values to 0, 1, 2"):
        read_segmentation(tmp_path / "label.nii", values=[0, 1, 2])


def test_a_label_on_the_grid_is_read(tmp_path, image):
    labels = (DATA % 4).astype(np.float32)
    nib.save(scan(labels, image.affine), tmp_path / "label.nii.gz")
    label = read_segmentation(tmp_path / "label.nii.gz", image, range(4))
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label.dataobj), labels)


def test_a_shift_by_a_tenth_of_a_voxel_is_the_same_grid(tmp_path, image):
    moved = nib.Nifti1Image(DATA, image.affine + 0.14 * np.eye(4, k=3))
    assert on_grid_of("label.nii.gz", moved, image) is moved
    moved = nib.Nifti1Image(DATA, image.affine + 0.16 * np.eye(4, k=3))
    with pytest.raises(FileError, match=r"^label.nii.gz: .* 0.16 mm off .* a tenth of the smallest side of a voxel"):
        on_grid_of("label.nii.gz", moved, image)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda labels, affine: (labels[1:], affine), r"shape \(5, 7, 5\), but its image has \(6, 7, 5\)"),
        (lambda labels, affine: (labels, affine + np.eye(4, k=3)), "up to 1 mm off"),
        (lambda labels, affine: (labels, affine @ np.diag([1, 1, 1.1, 1])), "mm off"),
        (lambda labels, affine: (labels + 3, affine), "contains the value 4; map its values to 0, 1, 2, 3"),
        (lambda labels, affine: (labels * 0.996, affine), "contains the value 0.996"),
        (lambda labels, affine: (labels - 1, affine), "contains the value -1"),
        (lambda labels, affine: (labels * np.nan, affine), "contains the value nan"),
    ],
    ids=["shape", "shifted", "stretched", "unknown", "fractions", "negative", "nan"],
)
def test_a_label_that_does_not_fit_is_refused(tmp_path, image, change, says):
    labels, affine = change((DATA % 4).astype(np.float32), image.affine)
    nib.save(scan(labels, affine), tmp_path / "label.nii.gz")
    with pytest.raises(FileError, match=says):
        read_segmentation(tmp_path / "label.nii.gz", image, range(4))


def test_a_label_at_the_qform_of_its_image_is_not_to_be_resampled(tmp_path):
    """For a scan with the codes (1, 2), ITK's tools write labels at the qform, but nibabel's affine is the sform."""
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32), np.eye(4))
    moved = np.eye(4)
    moved[:3, 3] = (10, 0, 0)
    image.set_qform(np.eye(4), 1)
    image.set_sform(moved, 2)
    nib.save(image, tmp_path / "scan.nii")
    label = nib.Nifti1Image(np.ones((6, 7, 8), np.uint8), np.eye(4))
    nib.save(label, tmp_path / "label.nii")
    with pytest.raises(FileError) as raised:
        read_segmentation(tmp_path / "label.nii", read_image(tmp_path / "scan.nii"), [0, 1])
    for words in ("10 mm off", "its image has two positions", "qform (code 1) has the origin (0, 0, 0) mm"):
        assert words in raised.value.problem
    assert "sform (code 2) (10, 0, 0) mm" in raised.value.problem
    assert "ITK uses it only if its code is 1 or the qform's is 0" in raised.value.problem
    assert "resample it" not in raised.value.problem
