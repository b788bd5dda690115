"""Reads NIfTI files without trusting their headers, and writes them."""

import gzip
import io
import math
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import finished_file

_HEADER_ERRORS = (nib.spatialimages.HeaderDataError, ValueError, OverflowError)
_ENDINGS = (".nii", ".nii.gz")
_CHUNK = 1 << 20  # bytes; memory is allocated as the file is read, not as its header claims


def read_nifti(path: Path | str) -> nib.Nifti1Image:
    """Reads a NIfTI file. It reads no more than the header claims, and allocates no more than the file contains."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        content = io.BytesIO()
        content.write(start := stream.read(_CHUNK))
        kind = nib.Nifti2Image if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        _check_raw(path, kind.header_class, start)
        try:
            header = kind.header_class(start[: kind.header_class.template_dtype.itemsize])
            claimed = header.get_data_offset() + math.prod(header.get_data_shape()) * (header.get_data_dtype().itemsize)
            numeric = header.get_data_dtype().kind in "iuf"
        except (*_HEADER_ERRORS, nib.wrapstruct.WrapStructError) as error:
            raise FileError(path, "is not a NIfTI file; give a .nii or .nii.gz") from error
        if min(header.get_data_shape(), default=0) < 1 or not numeric:
            raise FileError(path, "is not a NIfTI file with one volume of numbers; convert it to .nii.gz")
        while content.tell() < claimed and (chunk := stream.read(_CHUNK)):
            content.write(chunk)
    if content.tell() < claimed:
        if header["magic"].item() == kind.header_class.pair_magic:
            raise FileError(path, "is a header whose voxels are in another file; convert both to one .nii.gz")
        raise FileError(
            path,
            f"its header claims {claimed} bytes for shape {header.get_data_shape()} "
            f"but the file has {content.tell()}; it is damaged or incomplete, download it again",
        )
    content.seek(0)
    try:
        return kind.from_stream(content)
    except _HEADER_ERRORS as error:  # of fields that nibabel only checks with the data
        raise FileError(path, f"its header is invalid ({error}); repair it or download the file again") from error


def in_millimetres(voxels: np.ndarray, affine: np.ndarray, code: str) -> nib.Nifti1Image:
    """A new image with its units and with the affine as its sform and, unless it has a shear, as its qform.

    ``code`` is the NIfTI code of the space: "scanner", "aligned", "talairach" or "mni".
    """
    image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)  # the dtype allows 64-bit integers
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    sizes = nib.affines.voxel_sizes(affine)
    if not np.allclose(image.get_qform()[:3, :3] / sizes, affine[:3, :3] / sizes, atol=1e-4):
        image.set_qform(affine, "unknown")  # a quaternion cannot store a shear
    return image


def write_nifti(path: Path | str, image: nib.Nifti1Image) -> None:
    """Writes a NIfTI file, which exists only when it is complete."""
    if not Path(path).name.endswith(_ENDINGS):
        raise ValueError(f"`path` must end in {' or '.join(_ENDINGS)}, got {str(path)!r}")
    with finished_file(path) as unfinished:
        nib.save(image, unfinished)


def _check_raw(path: Path | str, kind: type[nib.Nifti1Header], content: bytes) -> None:
    """Raises a `FileError` for values that nibabel changes or uses silently.

    With an offset inside the header, it reads the header as voxels. A voxel size of 0 becomes 1 mm.
    """
    size = kind.template_dtype.itemsize
    if len(content) < size:
        return
    header = kind(content[:size], check=False)
    if header["magic"].item() != kind.single_magic:
        return
    sizes = header["pixdim"][1:4]
    if not sizes[header["dim"][1:4] > 1].all() and not header["sform_code"]:
        found = " x ".join(f"{size:.3g}" for size in sizes)
        raise FileError(path, f"its voxels are {found} mm (pixdim); repair the spacing in the header")
    if header["vox_offset"] < kind.single_vox_offset:
        raise FileError(
            path,
            f"its voxels begin at byte {header['vox_offset']:g} (vox_offset), inside its header; "
            f"set {kind.single_vox_offset}, or download the file again",
        )
