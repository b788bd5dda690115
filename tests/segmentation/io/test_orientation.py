"""Scans without an orientation, and labels whose axes have another order or direction than those of their scan."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from attn3d.segmentation import FileError, read_image, read_segmentation, write_label
from attn3d.segmentation.io.files import read_map, write_map
from tests.segmentation.volumes import AFFINES, DATA, scan


@pytest.mark.parametrize("name", ["oblique", "sheared"])
def test_a_label_may_have_its_axes_in_another_order_and_direction(tmp_path, name):
    """Of all 48 orientations. The position of each voxel is kept, also for 4-D probabilities."""
    image = scan(np.ones(DATA.shape, np.float32), AFFINES[name])
    labels = scan(np.random.default_rng(0).integers(0, 4, DATA.shape).astype(np.uint8), image.affine)
    probabilities = scan(np.random.default_rng(1).random((*DATA.shape, 2), np.float32), image.affine)
    for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        orientation = np.stack([order, flips], axis=1)
        for original, file in ((labels, "label.nii"), (probabilities, "map.nii")):
            nib.save(scan(*stored(original, orientation)), tmp_path / file)
        found = read_segmentation(tmp_path / "label.nii", image, range(4))
        np.testing.assert_array_equal(found.dataobj, labels.dataobj)
        np.testing.assert_array_equal(found.affine, image.affine)
        found = read_map(tmp_path / "map.nii", image, volumes=2)
        np.testing.assert_array_equal(found.dataobj, probabilities.dataobj)


def stored(image, orientation):
    """The voxels and the affine of an image in another orientation."""
    other = image.as_reoriented(orientation)
    return np.asarray(other.dataobj), other.affine


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data, affine: (data, affine + np.eye(4, k=3)), "up to 1 mm off"),
        (lambda data, affine: (data[1:], affine), r"has shape \(4, 7, 6\), but its image has \(6, 7, 5\)"),
    ],
    ids=["shifted", "shape"],
)
def test_a_reoriented_label_on_another_grid_is_refused(tmp_path, change, says):
    image = scan(DATA.astype(np.float32), AFFINES["oblique"])
    label = image.as_reoriented([[2, 1], [1, -1], [0, 1]])
    nib.save(scan(*change(np.asarray(label.dataobj) % 4, label.affine)), tmp_path / "label.nii")
    with pytest.raises(FileError, match=says):
        read_segmentation(tmp_path / "label.nii", image)


def without_orientation(path):
    """Writes a scan whose header has no codes and no units, but a position that does not count."""
    image = nib.Nifti1Image(DATA, None)
    image.header.set_zooms((0.5, 0.5, 3.0))
    image.header["qoffset_x"], image.header["srow_y"] = 7, (1, 2, 3, 4)
    nib.save(image, path)


def test_what_is_written_for_a_scan_without_orientation_lies_on_it_in_nibabel_and_itk(tmp_path):
    paths = [tmp_path / name for name in ("scan.nii.gz", "label.nii.gz", "map.nii.gz", "probabilities.nii.gz")]
    without_orientation(paths[0])
    image = read_image(paths[0])
    write_label(paths[1], DATA % 2, like=image)
    write_map(paths[2], DATA / 2, like=image)
    write_map(paths[3], np.stack([DATA, DATA], axis=-1), like=image)
    expected = sitk.ReadImage(str(paths[0]))
    for path in paths[1:]:
        written, in_itk = nib.load(path), sitk.ReadImage(str(path))
        np.testing.assert_array_equal(written.affine, image.affine)
        assert int(written.header["qform_code"]) == int(written.header["sform_code"]) == 0
        assert written.header.get_xyzt_units()[0] == "mm"
        in_itk = in_itk if in_itk.GetDimension() == 3 else in_itk[..., 0]
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(in_itk, name)() == getattr(expected, name)()
    np.testing.assert_array_equal(read_segmentation(paths[1], image).dataobj, DATA % 2)
    with pytest.raises(FileError, match=r"needs the orientation that the scan does not have; write NIfTI \(--format"):
        write_label(tmp_path / "label.nrrd", DATA % 2, like=image)


def test_a_scan_without_orientation_is_named_once(tmp_path, caplog):
    without_orientation(tmp_path / "scan.nii")
    for _ in range(2):
        read_image(tmp_path / "scan.nii")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'scan.nii'}: has no orientation in its header (qform_code and sform_code")
    assert message.endswith("the first axis is assumed to run to the left")


def test_an_orientation_that_only_one_of_scan_and_label_has_is_the_error(tmp_path):
    """The axes are not flipped, although that would put both on one grid: the header without codes says nothing."""
    without_orientation(tmp_path / "without.nii")
    without = nib.load(tmp_path / "without.nii")
    flipped = without.as_reoriented([[0, -1], [1, 1], [2, 1]])
    nib.save(scan(DATA, flipped.affine), tmp_path / "with.nii")
    for path, other, says in (
        ("without.nii", "with.nii", "it has no orientation in its header .* but its image has one"),
        ("with.nii", "without.nii", "its image has no orientation in its header .* but it has one"),
    ):
        with pytest.raises(FileError, match=says) as raised:
            read_segmentation(tmp_path / path, read_image(tmp_path / other))
        assert "resample" not in str(raised.value)
