"""Scans are read with their geometry; one that is damaged or implausible is named in an error of one line."""

import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, read_image, read_segmentation
from tests.segmentation.volumes import AFFINES, DATA, scan


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
    elif kind == "pair":
        nib.save(nib.Nifti1Pair(DATA, AFFINES["RAS"]), path.with_name("pair.img"))
        path.write_bytes(path.with_name("pair.hdr").read_bytes())
    elif kind.endswith("affine"):
        content = bytearray(whole.to_bytes())
        struct.pack_into("<4f", content, 312, *([0.0 if kind == "flat affine" else np.nan] * 4))  # srow_z
        path.write_bytes(content)
    elif kind == "NaN voxel":
        whole.get_fdata(dtype=np.float32)[1, 2, 3] = np.nan
        nib.save(nib.Nifti1Image(whole.get_fdata(dtype=np.float32), whole.affine), path)
    elif kind == "constant":
        nib.save(nib.Nifti1Image(np.ones(DATA.shape, np.int16), whole.affine), path)
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
        ("pair", "is a header whose voxels are in another file; convert both to one .nii.gz"),
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
def test_implausible_spacings_are_refused(sizes, found, tmp_path):
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


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    with pytest.raises(FileError, match="is a pipe or a device, not a file"):
        read_image(tmp_path / "scan.nii")
