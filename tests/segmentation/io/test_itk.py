"""NRRD and MetaImage files give the same volumes as NIfTI, or an error of one line."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from attn3d.segmentation import FileError, find_dataset, predict, prediction, read_image, read_segmentation, write_label
from attn3d.segmentation.io.itk import ENDINGS
from tests.segmentation import layouts
from tests.segmentation.runs import bright
from tests.segmentation.volumes import AFFINES, scan


def converted(path, ending):
    """Converts a NIfTI file with SimpleITK."""
    new = path.with_name(path.name.removesuffix(".nii.gz") + ending)
    sitk.WriteImage(sitk.ReadImage(str(path)), str(new), useCompression=ending == ".nrrd")
    return new


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("geometry", ["LAS, 5 mm slices", "oblique", "permuted"])
def test_a_scan_is_read_as_from_nifti(ending, geometry, tmp_path):
    nib.save(scan(bright()[0], AFFINES[geometry]), tmp_path / "scan.nii.gz")
    expected = read_image(tmp_path / "scan.nii.gz")
    found = read_image(converted(tmp_path / "scan.nii.gz", ending).rename(tmp_path / "scan.volume"))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_are_written_as_simpleitk_reads_them(ending, tmp_path):
    data = bright()[0]
    nib.save(scan(data, AFFINES["oblique"]), tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    path = tmp_path / f"label{ending}"
    write_label(path, (data > 0).astype(int), like=image)
    beside = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    found = sitk.ReadImage(str(path))
    assert found.GetPixelID() == sitk.sitkUInt8
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, name)(), getattr(beside, name)(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(beside) > 0)
    np.testing.assert_array_equal(read_segmentation(path, image, [0, 1]).dataobj, data > 0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_predict_writes_the_format_of_its_scan_or_the_given_format(ending, run, tmp_path):
    (tmp_path / "scans").mkdir()
    nib.save(scan(bright()[0], AFFINES["RAS"]), tmp_path / "case.nii.gz")
    converted(tmp_path / "case.nii.gz", ending).rename(tmp_path / "scans" / f"case{ending}")
    expected = predict(run.folder, tmp_path / "case.nii.gz", tmp_path / "nifti", quiet=True).written["case"]
    found = predict(run.folder, tmp_path / "scans", tmp_path / "out", quiet=True).written["case"]
    asked = predict(run.folder, tmp_path / "scans", tmp_path / "out", format="nii.gz", quiet=True).written["case"]
    assert (found.name, asked.name) == (f"case{ending}", "case.nii.gz")
    for path in (found, asked):
        np.testing.assert_array_equal(read_segmentation(path).dataobj, nib.load(expected).dataobj)
    with pytest.raises(ValueError, match=r"`format` must be one of nii.gz, nrrd, mha, got 'img'"):
        predict(run.folder, tmp_path / "scans", tmp_path / "out", format="img", quiet=True)


def test_pairs_in_other_formats_are_a_data_set(tmp_path):
    layouts.pairs(tmp_path)
    for path in sorted(tmp_path.glob("*/*.nii.gz")):
        converted(path, ".nrrd" if path.parent.name == "images" else ".mha")
        path.unlink()
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["1", "2"]
    assert not dataset.problems


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_that_are_not_volumes_are_refused(ending, tmp_path):
    rng = np.random.default_rng(0)
    noise = sitk.GetImageFromArray(rng.normal(size=(8, 9, 10)).astype(np.float32))
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(noise, str(path))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(FileError, match=r"is damaged or incomplete .*download it again"):
        read_image(path)
    sitk.WriteImage(noise[:, :, 0], str(path))
    with pytest.raises(FileError, match="must be a 3-D volume, got 2 axes"):
        read_image(path)
    sitk.WriteImage(sitk.Compose(noise, noise), str(path))
    with pytest.raises(FileError, match=r"must be a 3-D volume, got shape \(10, 9, 8, 2\)"):
        read_image(path)
    sheared = scan(bright()[0], AFFINES["sheared"])
    with pytest.raises(
        FileError, match=r"does not support the sheared axes of the scan; write NIfTI \(--format nii.gz\)"
    ):
        write_label(path, np.zeros(sheared.shape, int), like=sheared)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_format_that_does_not_support_the_axes_is_refused_before_the_segmentation(ending, run, tmp_path, monkeypatch):
    path = tmp_path / "out" / f"scan{ending}"
    path.parent.mkdir()
    path.write_text("earlier labels")
    nib.save(scan(bright()[0], AFFINES["sheared"]), tmp_path / "scan.nii.gz")
    monkeypatch.setattr(prediction, "segment", None)
    found = predict(run.folder, tmp_path / "scan.nii.gz", path.parent, format=ending[1:], overwrite=True, quiet=True)
    assert found.failed == {
        str(path): "its format does not support the sheared axes of the scan; write NIfTI (--format nii.gz)"
    }
    assert path.read_text() == "earlier labels"


HEADERS = [
    (".nrrd", "NRRD0004\ntype: float\ndimension: 3\nsizes: 4 5 6\n{}endian: little\nencoding: raw\n\n"),
    (".mha", "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\n{}ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"),
]


@pytest.mark.parametrize(("ending", "header"), HEADERS)
def test_a_scan_without_directions_is_named_once(ending, header, tmp_path, caplog):
    """ITK reads it as if its axes ran left, back and up."""
    data, path = np.random.default_rng(0).random(120, np.float32).tobytes(), tmp_path / f"scan{ending}"
    known = {
        ".nrrd": "space: left-posterior-superior\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n",
        ".mha": "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 2 3\n",
    }
    path.write_bytes(header.format(known[ending]).encode() + data)
    expected = read_image(path)
    assert not caplog.messages
    path.write_bytes(
        header.format("spacings: 1 2 3\n" if ending == ".nrrd" else "ElementSpacing = 1 2 3\n").encode() + data
    )
    for _ in range(2):
        np.testing.assert_array_equal(read_image(path).affine, expected.affine)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: has no orientation in its header (NRRD needs `space` and `space directions`")


@pytest.mark.parametrize(("ending", "header"), HEADERS)
def test_voxels_without_a_size_are_refused(ending, header, tmp_path):
    """ITK reads them as 1 mm."""
    data, path = np.random.default_rng(0).random(120, np.float32).tobytes(), tmp_path / f"scan{ending}"
    none = "space: left-posterior-superior\nspace directions: none none none\n"
    in_voxels = b"\nElementSpacing = 1 2 3\nspacings: 1 2 3\n"
    for fields, voxels in (("", data), (none if ending == ".nrrd" else "", in_voxels + data[len(in_voxels) :])):
        path.write_bytes(header.format(fields).encode() + voxels)
        with pytest.raises(FileError, match=r"its header has no size of the voxels \(.*\); add it"):
            read_image(path)
    size = "spacings: 1 2 3\n" if ending == ".nrrd" else "ElementSpacing = 1 2 3\n"
    path.write_bytes(header.format(size).encode() + data)
    np.testing.assert_array_equal(nib.affines.voxel_sizes(read_image(path).affine), (1, 2, 3))


def test_labels_of_a_sheared_nrrd_have_one_position(tmp_path):
    """A qform cannot store the shear, so only the sform has the affine."""
    affine, data = AFFINES["sheared"], bright()[0].astype(np.float32)
    to_itk = np.diag([-1.0, -1.0, 1.0])  # left, posterior, superior
    axes, origin = (to_itk @ affine[:3, :3]).T, to_itk @ affine[:3, 3]
    header = [
        "NRRD0004",
        "type: float",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, data.shape))}",
        f"space directions: {' '.join('(' + ','.join(map(str, axis)) + ')' for axis in axes)}",
        f"space origin: ({','.join(map(str, origin))})",
        "endian: little",
        "encoding: raw",
    ]
    (tmp_path / "scan.nrrd").write_bytes("\n".join(header).encode() + b"\n\n" + data.astype("<f4").tobytes(order="F"))
    image = read_image(tmp_path / "scan.nrrd")
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata(), data)
    write_label(tmp_path / "label.nii.gz", np.zeros(data.shape, int), like=image)
    written = nib.load(tmp_path / "label.nii.gz")
    np.testing.assert_allclose(written.get_sform(), affine, atol=1e-4)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 0)
