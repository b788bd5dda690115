"""A thousand damaged NIfTI files: each raises an error of one line with its name, or is read by its header."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, read_image
from attn3d.segmentation.io.files import read_segmentation

pytestmark = pytest.mark.scorecard("files")

MEMORY = 200e6
ITEMS, CASES = 20, 50
SHAPE = (6, 7, 5)
# NumPy's types by NIfTI's code, without 80-bit floats, complex numbers and colours, which are not supported.
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
WRITTEN = [np.uint8, np.int16, np.int32, np.float32, np.float64]
# Positions and types of the header fields of NIfTI-1 and NIfTI-2.
FIELDS = {
    1: {
        **{f"dim{axis}": (40 + 2 * axis, "h") for axis in range(8)},
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        **{f"pixdim{axis}": (76 + 4 * axis, "f") for axis in range(4)},
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        **{f"quatern{place}": (256 + 4 * place, "f") for place in range(6)},
        **{f"srow{place}": (280 + 4 * place, "f") for place in range(12)},
        "magic": (344, "i"),
        "sizeof_hdr": (0, "i"),
    },
    2: {
        **{f"dim{axis}": (16 + 8 * axis, "q") for axis in range(8)},
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        **{f"pixdim{axis}": (104 + 8 * axis, "d") for axis in range(4)},
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        **{f"srow{place}": (400 + 8 * place, "d") for place in range(12)},
        "xyzt_units": (500, "i"),
        "magic": (4, "i"),
    },
}
VALUES = {
    "h": [0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 512, 768, 1024, 1280, 1536, 32767, -32768],
    "f": [0.0, 1.0, -1.0, 2.5, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 352.0, 353.0, 4000.0, -8.0],
    "B": [0, 1, 2, 3, 10, 255],
    "i": [0, 1, 2, 7, 348, 540, 1543569408, 2**31 - 1, -1],
    "q": [0, 1, -1, 3, 7, 100, 544, 545, 2**33, 2**62],
}
VALUES["d"] = VALUES["f"]


def whole(generator: random.Random) -> tuple[bytearray, bool]:
    """A valid file in either byte order and any type, and whether it is a label."""
    kind = generator.choice(WRITTEN)
    is_label = generator.random() < 0.4
    values = np.random.default_rng(generator.randrange(2**32)).integers(0, 4 if is_label else 100, SHAPE)
    version = nib.Nifti2Image if generator.random() < 0.25 else nib.Nifti1Image
    image = version(values.astype(kind), np.diag([1.0, 1.5, 2.0, 1.0]))
    header = image.header.as_byteswapped(generator.choice("<>"))
    image = version(values.astype(kind), image.affine, header)
    if not is_label and generator.random() < 0.3:
        image.header.set_slope_inter(0.5, -10.0)
    return bytearray(image.to_bytes()), is_label


def damaged(generator: random.Random, content: bytearray) -> bytearray:
    """Cuts the file, changes a field of the header, or changes random bytes of it; sometimes does nothing."""
    way = generator.randrange(10)
    if way < 3:
        return content[: generator.randrange(len(content))]
    order = "<" if content[1] else ">"  # sizeof_hdr is 348 or 540, in two of its four bytes
    fields = FIELDS[2 if b"\x02\x1c" in (content[:2][::-1], content[2:4]) else 1]
    if way < 8:
        for _ in range(generator.choice((1, 1, 2))):
            place, kind = fields[generator.choice(list(fields))]
            struct.pack_into(f"{order}{kind}", content, place, generator.choice(VALUES[kind]))
    elif way < 9:
        for _ in range(generator.choice((1, 2, 4, 16))):
            content[generator.randrange(348)] = generator.randrange(256)
    return content


def compressed(generator: random.Random, content: bytearray) -> bytes:
    """The content as it is, compressed, or compressed and then cut or changed."""
    way = generator.randrange(8)
    if way < 4:
        return bytes(content)
    packed = bytearray(gzip.compress(bytes(content), mtime=0))
    if way == 6:
        packed = packed[: generator.randrange(len(packed))]
    elif way == 7:
        packed[generator.randrange(len(packed))] ^= 1 << generator.randrange(8)
    return bytes(packed)


def decoded(content: bytes) -> np.ndarray:
    """The voxels by NIfTI's standard, without nibabel."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    order = "<" if content[1] else ">"
    if struct.unpack_from(f"{order}i", content)[0] == 540:
        rank, *sizes = struct.unpack_from(f"{order}8q", content, 16)
        (code,) = struct.unpack_from(f"{order}h", content, 12)
        header, (offset, slope, intercept) = 544, struct.unpack_from(f"{order}qdd", content, 168)
    else:
        order = "<" if 0 < struct.unpack_from("<h", content, 40)[0] < 8 else ">"  # whatever `sizeof_hdr` says
        rank, *sizes = struct.unpack_from(f"{order}8h", content, 40)
        (code,) = struct.unpack_from(f"{order}h", content, 70)
        header, (offset, slope, intercept) = 352, struct.unpack_from(f"{order}3f", content, 108)
    offset = max(int(offset), header)  # voxels never begin within the header
    count = int(np.prod(sizes[:rank], dtype=np.int64))
    values = np.frombuffer(content, np.dtype(TYPES[code]).newbyteorder(order), count, offset)
    values = values.reshape(sizes[:3], order="F").astype(np.float64)
    # A slope of 0, or one that is not finite, means no scaling.
    return values if slope == 0 or not np.isfinite(slope) else values * slope + intercept


def read(path: Path, is_label: bool) -> tuple[nib.Nifti1Image | None, str, int]:
    """The volume or None, the error message or an empty string, and the peak memory."""
    tracemalloc.start()
    try:
        found, refusal = (read_segmentation(path) if is_label else read_image(path)), ""
    except FileError as error:
        found, refusal = None, str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return found, refusal, peak


@pytest.mark.parametrize("item", range(ITEMS))
def test_a_damaged_file_is_refused_or_read_correctly(item, tmp_path, count_cases):
    outcomes = set()
    for number in range(CASES):
        generator = random.Random(f"{item} {number}")
        content, is_label = whole(generator)
        content = compressed(generator, damaged(generator, content))
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(content)
        found, refusal, peak = read(path, is_label)
        assert peak < MEMORY, f"case {item} {number}"
        if found is None:
            assert refusal.startswith(f"{path}: ")
            assert "\n" not in refusal
        else:
            expected = decoded(content)
            assert found.shape == expected.shape, f"case {item} {number}"
            np.testing.assert_allclose(np.asanyarray(found.dataobj), expected, rtol=1e-6, atol=1e-30)
            assert np.isfinite(found.affine).all()
        outcomes.add(found is None)
        count_cases()
    assert outcomes == {True, False}, "some must be read and some refused"
