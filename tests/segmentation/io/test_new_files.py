"""New images and labels have the geometry that they are given, in a form that all programs read."""

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import read_image, write_image, write_label
from tests.segmentation.volumes import AFFINES, DATA


@pytest.mark.parametrize(
    ("name", "codes"),
    [(name, codes) for name in AFFINES for codes in [(1, 1), (0, 2), (4, 1)]] + [("oblique", (1, 0))],
)
def test_a_label_is_written_in_the_geometry_of_its_scan(tmp_path, name, codes):
    qform_code, sform_code = codes
    original = nib.Nifti1Image(DATA, AFFINES[name])
    original.set_qform(AFFINES[name], qform_code)
    original.set_sform(AFFINES[name], sform_code)
    original.header.set_xyzt_units("mm", "sec")
    original.header.set_slope_inter(2.0, 10.0)
    nib.save(original, tmp_path / "scan.nii.gz")

    write_label(tmp_path / "label.nii.gz", DATA % 5, like=read_image(tmp_path / "scan.nii.gz"))
    before, after = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "label.nii.gz")
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), DATA % 5)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_sform(), before.get_sform())
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == codes
    assert after.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros((2, 2, 2), int), "shape"),
        (DATA % 5 + 0.5, r"`labels` must be whole numbers from 0 to 255, got \d\.5"),
        (DATA % 5 + 255, "`labels` must be whole numbers from 0 to 255, got 25[6-9]"),
        (DATA % 5 - 1, "`labels` must be whole numbers from 0 to 255, got -1"),
    ],
    ids=["shape", "fractions", "above 255", "negative"],
)
def test_labels_outside_uint8_are_refused(tmp_path, image, labels, says):
    with pytest.raises(ValueError, match=says):
        write_label(tmp_path / "label.nii.gz", labels, like=image)
    assert not (tmp_path / "label.nii.gz").exists()


def test_a_new_image_has_its_affine_as_sform_and_qform(tmp_path):
    write_image(tmp_path / "scan.nii.gz", DATA, AFFINES["oblique"], code="mni")
    image = nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(image.get_qform(), AFFINES["oblique"], atol=1e-5)
    np.testing.assert_allclose(image.get_sform(), AFFINES["oblique"], atol=1e-5)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 4
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("name", "code"), [("oblique", 1), ("sheared", 0)])
def test_a_new_volume_has_a_qform_if_it_can_store_the_affine(name, code, tmp_path):
    write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.float32), AFFINES[name], "scanner")
    header = nib.load(tmp_path / "new.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (code, 1)
    np.testing.assert_allclose(header.get_sform(), AFFINES[name], atol=1e-5)


def test_a_small_shear_of_small_voxels_is_not_stored_in_the_qform(tmp_path):
    """Over 600 voxels of 0.1 mm, this shear is 0.7 mm."""
    affine = np.diag([0.1, 0.1, 0.1, 1.0])
    affine[0, 2] = 0.0012
    write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.float32), affine, "scanner")
    header = nib.load(tmp_path / "new.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)


def test_stored_numbers_can_have_an_intercept(tmp_path):
    write_image(tmp_path / "scan.nii.gz", DATA, AFFINES["RAS"], intercept=-1024)
    assert nib.load(tmp_path / "scan.nii.gz").get_data_dtype() == np.int16
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii.gz").get_fdata(), DATA - 1024)


def test_64_bit_integers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"`data` must have a type that all programs read, .* got int64"):
        write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.int64), np.eye(4))
    assert not (tmp_path / "new.nii.gz").exists()


@pytest.mark.parametrize("name", ["scan.mha", "scan.NII", "scan"])
def test_new_volumes_must_be_nifti(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`path` must end in \.nii or \.nii\.gz, got '.*{name}'"):
        write_image(tmp_path / name, DATA, AFFINES["RAS"])
    assert not [*tmp_path.iterdir()]
