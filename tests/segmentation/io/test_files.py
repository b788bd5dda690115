import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, finished_file, read_image, read_segmentation, write_image, write_label
from attn3d.segmentation.io.files import on_grid_of
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (6, 7, 5)
DATA = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.fixture
def image(tmp_path):
    nib.save(scan(DATA, AFFINES["oblique"]), tmp_path / "scan.nii.gz")
    return read_image(tmp_path / "scan.nii.gz")


def lying_header(shape, data_type=16, bits=32):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, data_type, bits)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_image_is_read_as_float32_with_its_geometry(tmp_path, name, suffix):
    path = tmp_path / f"scan{suffix}"
    nib.save(scan(DATA, AFFINES[name]), path)
    image = read_image(path)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.get_fdata(), DATA)
    np.testing.assert_allclose(image.affine, AFFINES[name], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_image_of_more_than_a_chunk_is_read_whole(tmp_path, suffix):
    """Files are read in chunks of a MiB, up to the size in the header."""
    data = np.random.default_rng(0).integers(0, 1000, (64, 72, 150), dtype=np.int16)
    nib.save(scan(data, AFFINES["RAS"]), tmp_path / f"scan{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"scan{suffix}").get_fdata(), data)


def test_scaled_integers_doubles_nifti2_and_singletons_are_read(tmp_path):
    scaled = scan(DATA, AFFINES["RAS"])
    scaled.header.set_slope_inter(0.5, -1024)
    nib.save(scaled, tmp_path / "scaled.nii")
    stored = nib.load(tmp_path / "scaled.nii").get_fdata()
    np.testing.assert_allclose(read_image(tmp_path / "scaled.nii").get_fdata(), stored)

    second = nib.Nifti2Image(DATA[..., None, None].astype(np.float64), AFFINES["RAS"])
    nib.save(second, tmp_path / "second.nii.gz")
    image = read_image(tmp_path / "second.nii.gz")
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(image.get_fdata(), DATA)


def test_a_compressed_file_is_read_whatever_its_name(tmp_path):
    nib.save(scan(DATA, AFFINES["RAS"]), tmp_path / "scan.nii")
    (tmp_path / "named.nii").write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes()))
    np.testing.assert_array_equal(read_image(tmp_path / "named.nii").get_fdata(), DATA)


def damaged(kind, path):
    """Writes a file with the given damage."""
    whole = scan(DATA.astype(np.float32), AFFINES["RAS"])
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("subject,age\n1,40\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "lying":
        path.write_bytes(gzip.compress(lying_header((512, 512, 512))))
    elif kind == "negative":
        path.write_bytes(gzip.compress(lying_header((-4, 4, 4)) + bytes(1000)))
    elif kind == "colour":
        path.write_bytes(gzip.compress(lying_header((4, 4, 4), data_type=128, bits=24) + bytes(1000)))
    elif kind == "4-D":
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), path)
    elif kind == "2-D":
        nib.save(nib.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)), path)
    elif kind.endswith("affine"):
        content = bytearray(whole.to_bytes())
        struct.pack_into("<4f", content, 312, *([0.0 if kind == "flat affine" else np.nan] * 4))  # srow_z
        path.write_bytes(content)
    elif kind == "NaN voxel":
        whole.get_fdata(dtype=np.float32)[1, 2, 3] = np.nan
        nib.save(nib.Nifti1Image(whole.get_fdata(dtype=np.float32), whole.affine), path)
    elif kind == "constant":
        nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), whole.affine), path)
    elif kind == "microns":
        whole.header.set_xyzt_units("micron")
        nib.save(whole, path)
    elif kind.startswith("cut"):
        nib.save(whole, path)
        content = path.read_bytes() if kind == "cut compressed" else gzip.decompress(path.read_bytes())
        path.write_bytes(content[: int(0.7 * len(content))])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "No such file"),
        ("folder", "folder without a DICOM series"),
        ("text", "not a NIfTI"),
        ("empty", "not a NIfTI"),
        ("lying", r"claims 536871264 bytes for shape \(512, 512, 512\)"),
        ("negative", "not a NIfTI"),
        ("colour", "not a NIfTI file with one volume of numbers"),
        ("4-D", r"must be a 3-D volume, got shape \(4, 4, 4, 3\)"),
        ("2-D", r"must be a 3-D volume, got shape \(4, 4\)"),
        ("NaN affine", "affine"),
        ("flat affine", "affine"),
        ("NaN voxel", "1 voxels are NaN"),
        ("constant", "same value"),
        ("microns", "micron"),
        ("cut compressed", "incomplete"),
        ("cut plain", "incomplete"),
    ],
)
def test_the_error_for_a_damaged_file_is_one_line_with_its_name(tmp_path, kind, says):
    path = tmp_path / "scan.nii.gz"
    damaged(kind, path)
    with pytest.raises(FileError, match=says) as error:
        read_image(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_header_with_a_false_shape_is_refused_before_allocation(tmp_path):
    path = tmp_path / "scan.nii.gz"
    damaged("lying", path)
    assert path.stat().st_size < 100
    tracemalloc.start()
    with pytest.raises(FileError):
        read_image(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("kind", "place", "code", "whole"), [(nib.Nifti1Image, 108, "f", 352), (nib.Nifti2Image, 168, "q", 544)]
)
@pytest.mark.parametrize("order", "<>")
def test_voxels_that_begin_in_the_header_are_refused(kind, place, code, whole, order, suffix, tmp_path):
    path = tmp_path / f"scan{suffix}"
    image = kind(DATA, AFFINES["RAS"], kind.header_class().as_byteswapped(order))
    for offset in (0, 1, whole - 1, whole):
        content = bytearray(image.to_bytes())
        struct.pack_into(f"{order}{code}", content, place, offset)
        path.write_bytes(gzip.compress(bytes(content)) if suffix == ".nii.gz" else content)
        if offset == whole:
            np.testing.assert_array_equal(read_image(path).get_fdata(), DATA)
            continue
        with pytest.raises(FileError, match=rf"begin at byte {offset} \(vox_offset\), .*; set {whole}"):
            read_image(path)


@pytest.mark.parametrize(("sizes", "found"), [((1, 1, 100), "1 x 1 x 100"), ((0.001, 1, 1), "0.001 x 1 x 1")])
def test_implausible_spacings_are_refused(sizes, found, tmp_path, image):
    path = tmp_path / "scan.nii.gz"
    nib.save(scan(DATA % 4, np.diag([*sizes, 1.0])), path)
    for read in (read_image, read_segmentation):
        with pytest.raises(FileError, match=f"its voxels are {found} mm, but must be 0.01 to 50 mm"):
            read(path)


def test_voxels_without_a_size_are_refused(tmp_path):
    """nibabel reads a size of 0 as 1 mm. With an sform, the size is not needed."""
    path = tmp_path / "scan.nii"
    for code in (0, 1):
        image = nib.Nifti1Image(DATA, np.diag([2, 3, 4, 1]))
        image.set_sform(np.diag([2, 3, 4, 1]), code)
        image.set_qform(None, 0)
        nib.save(image, path)
        content = bytearray(path.read_bytes())
        struct.pack_into("<3f", content, 80, 2, 0, 0)
        path.write_bytes(content)
        if code:
            np.testing.assert_array_equal(nib.affines.voxel_sizes(read_image(path).affine), (2, 3, 4))
        else:
            with pytest.raises(
                FileError, match=r"scan\.nii: its voxels are 2 x 0 x 0 mm \(pixdim\); repair the spacing"
            ):
                read_image(path)


def test_a_single_slice_needs_no_distance_to_the_next(tmp_path):
    path = tmp_path / "slice.nii"
    image = nib.Nifti1Image(DATA[..., :1], np.diag([2, 3, 4, 1]))
    image.set_sform(None, 0)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 88, 0)
    path.write_bytes(content)
    assert read_image(path).shape == (6, 7, 1)


def test_a_scan_of_one_slice_is_read(tmp_path):
    nib.save(scan(DATA[..., :1], AFFINES["oblique"]), tmp_path / "slice.nii.gz")
    image = read_image(tmp_path / "slice.nii.gz")
    assert image.shape == (6, 7, 1)
    np.testing.assert_array_equal(image.get_fdata(), DATA[..., :1])


def test_a_label_may_be_empty(tmp_path, image):
    path = tmp_path / "label.nii.gz"
    nib.save(scan(np.zeros(SHAPE, np.int16), image.affine), path)
    assert not np.asarray(read_segmentation(path, image, range(4)).dataobj).any()


def test_a_mask_with_other_values_is_thresholded(tmp_path, image):
    mask = np.zeros(SHAPE, np.float32)
    mask[1:3], mask[4], mask[5] = 0.99607843, 0.05, 254.9
    nib.save(scan(mask, image.affine), tmp_path / "mask.nii.gz")
    label = read_segmentation(tmp_path / "mask.nii.gz", image, [0, 1], threshold=0.1)
    np.testing.assert_array_equal(np.asarray(label.dataobj), mask > 0.1)
    mask[0, 0, 0] = np.nan
    nib.save(scan(mask, image.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(FileError, match="NaN or infinite"):
        read_segmentation(tmp_path / "mask.nii.gz", image, [0, 1], threshold=0.1)


def test_a_shift_by_a_tenth_of_a_voxel_is_the_same_grid(tmp_path, image):
    moved = nib.Nifti1Image(DATA, image.affine + 0.14 * np.eye(4, k=3))
    assert on_grid_of("label.nii.gz", moved, image) is moved
    moved = nib.Nifti1Image(DATA, image.affine + 0.16 * np.eye(4, k=3))
    with pytest.raises(FileError, match=r"^label.nii.gz: .* 0.16 mm off .* a tenth of the smallest side of a voxel"):
        on_grid_of("label.nii.gz", moved, image)


def test_a_label_on_the_grid_is_read(tmp_path, image):
    labels = (DATA % 4).astype(np.float32)
    nib.save(scan(labels, image.affine), tmp_path / "label.nii.gz")
    label = read_segmentation(tmp_path / "label.nii.gz", image, range(4))
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label.dataobj), labels)


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


def test_a_new_image_has_its_affine_as_sform_and_qform(tmp_path):
    write_image(tmp_path / "scan.nii.gz", DATA, AFFINES["oblique"], code="mni")
    image = nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(image.get_qform(), AFFINES["oblique"], atol=1e-5)
    np.testing.assert_allclose(image.get_sform(), AFFINES["oblique"], atol=1e-5)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 4
    assert image.header.get_xyzt_units()[0] == "mm"


def test_stored_numbers_can_have_an_intercept(tmp_path):
    write_image(tmp_path / "scan.nii.gz", DATA, AFFINES["RAS"], intercept=-1024)
    assert nib.load(tmp_path / "scan.nii.gz").get_data_dtype() == np.int16
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii.gz").get_fdata(), DATA - 1024)


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


@pytest.mark.parametrize("name", ["scan.mha", "scan.NII", "scan"])
def test_new_volumes_must_be_nifti(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`path` must end in \.nii or \.nii\.gz, got '.*{name}'"):
        write_image(tmp_path / name, DATA, AFFINES["RAS"])
    assert not [*tmp_path.iterdir()]


def test_no_file_is_left_incomplete(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("before")

    def fail():
        with finished_file(path) as unfinished:
            unfinished.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    with finished_file(path) as unfinished:
        unfinished.write_text("whole")
    assert path.read_text() == "whole"


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


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    with pytest.raises(FileError, match="is a pipe or a device, not a file"):
        read_image(tmp_path / "scan.nii")


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


def test_a_small_shear_of_small_voxels_is_not_stored_in_the_qform(tmp_path):
    """Over 600 voxels of 0.1 mm, this shear is 0.7 mm."""
    affine = np.diag([0.1, 0.1, 0.1, 1.0])
    affine[0, 2] = 0.0012
    write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.float32), affine, "scanner")
    header = nib.load(tmp_path / "new.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)


def test_64_bit_integers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"`data` must have a type that all programs read, .* got int64"):
        write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.int64), np.eye(4))
    assert not (tmp_path / "new.nii.gz").exists()


@pytest.mark.parametrize(("name", "code"), [("oblique", 1), ("sheared", 0)])
def test_a_new_volume_has_a_qform_if_it_can_store_the_affine(name, code, tmp_path):
    write_image(tmp_path / "new.nii.gz", np.zeros((3, 4, 5), np.float32), AFFINES[name], "scanner")
    header = nib.load(tmp_path / "new.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (code, 1)
    np.testing.assert_allclose(header.get_sform(), AFFINES[name], atol=1e-5)
