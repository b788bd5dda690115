"""From a NIfTI file or a DICOM series to an array that can be trusted, and back into the same geometry.

Files are nibabel's business, those of DICOM have a file of their own. What is added is what goes wrong on the way:
headers that lie about the size of their data, affines that are no geometry, labels that are no whole numbers or lie
on another grid, and results that are written in half.
"""

import gzip
import logging
import math
import zlib
from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.dicom import is_dicom, read_series
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.itk import ENDINGS, is_itk, read_itk, write_itk
from attn3d.segmentation.writing import finished_file

logger = logging.getLogger("attn3d")
_HEADER_ERRORS = (nib.spatialimages.HeaderDataError, ValueError, OverflowError)
_OFF_WHOLE = 1e-3  # of a label
_CHUNK = 1 << 20  # bytes; a header is believed only as far as the file goes on
_SPACINGS = (0.01, 50.0)  # mm
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def read_image(path: Path | str) -> nib.Nifti1Image:
    """A 3-D scan as float32, with its header as it was.

    Args:
        path: a NIfTI-1 or NIfTI-2 file, compressed or not, a NRRD or MetaImage file, whatever its name says, the folder
            of a DICOM series, or a DICOM file of several frames. Trailing axes of length 1 are dropped.

    Raises:
        FileError: as `read_volume`, or when all voxels are the same.
    """
    image = read_volume(path)
    data = np.asarray(image.dataobj)
    if data.min() == data.max():
        raise FileError(path, f"every voxel has the same value {data.min():g}; this is not a scan")
    return image


def read_volume(path: Path | str) -> nib.Nifti1Image:
    """What `read_image` reads, all voxels of which may be the same.

    Args:
        path: as for `read_image`.

    Raises:
        FileError: when the file is missing, truncated, no NIfTI or not 3-D, when its affine is no geometry,
            when a voxel is not finite; when DICOM is not one volume whose slices lie evenly above each other, straight
            or shifted as under a tilted gantry.
    """
    image = read_series(path) if Path(path).is_dir() or is_dicom(path) else _read(path)
    _check_spacing(path, image.affine)
    data = image.get_fdata(dtype=np.float32)
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise FileError(path, f"{bad} voxels are NaN or infinite; replace them, for example by 0")
    return type(image)(data.reshape(data.shape[:3]), image.affine, image.header, dtype=np.float32)


def read_label(path: Path | str, image: nib.Nifti1Image, values: Collection[int]) -> nib.Nifti1Image:
    """The label of ``image`` as uint8, on the same grid.

    Args:
        path: a NIfTI file of whole numbers.
        image: the scan that it labels, from `read_image`.
        values: the values that may occur.

    Raises:
        FileError: as `read_image`; and when the label is off the image's grid, holds a value that is not
            among ``values``, or labels nothing at all.
    """
    label = read_segmentation(path, image, values)
    if not np.asanyarray(label.dataobj).any():
        raise FileError(path, "the label is empty; give one in which at least a voxel is not 0")
    return label


def read_segmentation(
    path: Path | str,
    image: nib.Nifti1Image | None = None,
    values: Collection[int] | None = None,
    *,
    threshold: float | None = None,
) -> nib.Nifti1Image:
    """A reference or a prediction as uint8; unlike a label to learn from it may rightly be empty.

    Args:
        path: a NIfTI file of whole numbers, or of numbers that storing moved off them by less than a thousandth.
        image: a volume on whose grid it must be.
        values: the values that may occur; by default 0 to 255.
        threshold: for masks of other numbers: what exceeds it is 1, the rest 0.

    Raises:
        FileError: as `read_image`; and when it is off the grid or holds another value.
    """
    label = _read(path)
    _check_spacing(path, label.affine)
    data = np.asanyarray(label.dataobj).reshape(label.shape[:3])
    if image is None:
        image = type(label)(data, label.affine, label.header)
    check_same_grid(path, label, image)
    if threshold is not None:
        if not np.isfinite(data).all():
            raise FileError(path, "the mask holds NaN or infinite values; replace them by 0")
        data = data > threshold
    elif data.dtype.kind == "f":
        data = _rounded(path, data)
    known = "whole numbers from 0 to 255" if values is None else ", ".join(map(str, sorted(values)))
    known_at_sight = values is None and data.dtype == np.uint8
    for value in () if known_at_sight else values_in(data):
        if value not in (range(256) if values is None else values):
            raise FileError(path, f"the label holds the value {value:.6g}; map its values to {known}")
    return type(image)(data.astype(np.uint8), image.affine, image.header, dtype=np.uint8)


def values_in(data: np.ndarray) -> np.ndarray:
    """The different values of an array in ascending order; it is walked through as it lies in memory."""
    return np.unique(data.ravel(order="K"))


def check_same_grid(path: Path | str, image: nib.Nifti1Image, other: nib.Nifti1Image) -> None:
    """Checks that the image of a file lies on the grid of another, to a tenth of a voxel.

    Raises:
        FileError: when it does not.
    """
    shape = image.shape[:3]
    if shape != other.shape:
        raise FileError(path, f"it has shape {shape} but its image {other.shape}; resample it to the image's grid")
    distance = _largest_displacement(image.affine, other.affine, shape)
    if distance > 0.1 * nib.affines.voxel_sizes(other.affine).min():
        advice = _two_places(image, "it") or _two_places(other, "its image") or "resample it to the image's grid"
        raise FileError(path, f"it lies up to {distance:.3g} mm off its image's grid; {advice}")


def _rounded(path: Path | str, data: np.ndarray) -> np.ndarray:
    """Labels as whole numbers where a scale factor left them a little off, which is said; others as they are."""
    whole = np.rint(data)
    off = np.abs(data - whole)
    near = (off > 0) & (off <= _OFF_WHOLE)
    if not near.any():
        return data
    logger.warning("%s: labels up to %.1g off whole numbers are rounded", path, off[near].max())
    return np.where(near, whole, data)


def _two_places(image: nib.Nifti1Image, of: str) -> str:
    """What to say of a volume whose header gives it two places, nothing of any other."""
    header = image.header
    qform, sform = (int(header[f"{form}_code"]) for form in ("qform", "sform"))
    if not (qform and sform) or _largest_displacement(header.get_qform(), header.get_sform(), image.shape[:3]) < 0.1:
        return ""
    places = [
        "(" + ", ".join(f"{mm:g}" for mm in form[:3, 3]) + ")" for form in (header.get_qform(), header.get_sform())
    ]
    return (
        f"{of} has two places in its header: the qform of code {qform} begins at {places[0]} mm, the sform of code "
        f"{sform} at {places[1]} mm. The sform counts here; ITK reads it only where its code is 1 or the qform's is 0. "
        "Find out which is right and write it to both; resampling would move a correct label"
    )


def write_image(
    path: Path | str, data: np.ndarray, affine: np.ndarray, code: str = "aligned", intercept: float = 0.0
) -> None:
    """Writes a new volume in millimetres, its qform and sform saying the same.

    Args:
        path: where to; nothing is there before the file is whole.
        data: the voxels, in a type that NIfTI has (uint8, int16, float32, ..).
        affine: voxel indices to millimetres.
        code: the space of the affine in NIfTI's words, "scanner", "aligned", "talairach" or "mni".
        intercept: what readers add to ``data``, as in files of scanners that store HU + 1024.
    """
    image = nib.Nifti1Image(data, affine)
    if intercept:
        image.header.set_slope_inter(1.0, intercept)
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    image.header.set_xyzt_units("mm")
    with finished_file(path) as unfinished:
        nib.save(image, unfinished)


def write_label(path: Path | str, labels: np.ndarray, like: nib.Nifti1Image) -> None:
    """Writes labels as uint8 in the geometry of ``like``: affines, their codes and units.

    A scan without any code, or without units, gets both codes and millimetres, which is how it was read.

    Args:
        path: where to, in NRRD or MetaImage where it ends in .nrrd or .mha; nothing is there before it is whole.
        labels: whole numbers from 0 to 255, of the shape of ``like``.
        like: the scan that was segmented, from `read_image`.

    Raises:
        ValueError: when ``labels`` has another shape or values that uint8 does not hold.
    """
    if labels.shape != like.shape:
        raise ValueError(f"`labels` must have the scan's shape {like.shape}, got {labels.shape}")
    if not np.array_equal(labels, labels.astype(np.uint8)):
        raise ValueError(f"`labels` must be whole numbers from 0 to 255, got up to {labels.max()}")
    if Path(path).name.endswith(ENDINGS):
        write_itk(path, labels.astype(np.uint8), like.affine)
        return
    image = type(like)(labels.astype(np.uint8), like.affine)
    image.header.set_intent("label")
    for field in _GEOMETRY:
        image.header[field] = like.header[field]
    if not (image.header["qform_code"] or image.header["sform_code"]):
        image.set_qform(like.affine, "aligned")
        image.set_sform(like.affine, "aligned")
    if like.header.get_xyzt_units()[0] == "unknown":
        image.header.set_xyzt_units("mm")
    with finished_file(path) as unfinished:
        nib.save(image, unfinished)


def _read(path: Path | str) -> nib.Nifti1Image:
    """The image in a file, checked as far as scans and labels have to agree."""
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise FileError(path, "is a pipe or a device, no file; give a .nii or .nii.gz")
    try:
        image = read_itk(path) if Path(path).is_file() and is_itk(path) else _from_stream(path)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise FileError(path, "the compressed file is damaged or cut short; fetch it again") from error
    if len(image.shape) < 3 or any(size != 1 for size in image.shape[3:]):
        raise FileError(path, f"a 3-D volume is needed, got shape {image.shape}; extract one volume first")
    if (units := _units(image.header)) not in ("mm", "unknown"):
        raise FileError(path, f"its units are {units}; convert it to millimetres")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise FileError(path, "its affine is not finite or flat; repair the header's sform or qform")
    return image


def _check_spacing(path: Path | str, affine: np.ndarray) -> None:
    """Refuses voxels of a size that no scan has: nothing that is said in mm would be true."""
    sizes, (least, most) = nib.affines.voxel_sizes(affine), _SPACINGS
    if sizes.min() < least or sizes.max() > most:
        found = " x ".join(f"{size:.3g}" for size in sizes)
        raise FileError(
            path,
            f"its voxels are {found} mm, those of a scan {least:g} to {most:g} mm; repair the spacing or its units",
        )


def _from_stream(path: Path | str) -> nib.Nifti1Image:
    """Reads no more than the header claims and allocates no more than the file holds."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        content = bytearray(stream.read(_CHUNK))
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        _check_offset(path, kind.header_class, bytes(content))
        try:
            header = kind.header_class(bytes(content[: kind.header_class.template_dtype.itemsize]))
            claimed = header.get_data_offset() + math.prod(header.get_data_shape()) * (header.get_data_dtype().itemsize)
            numeric = header.get_data_dtype().kind in "iuf"
        except (*_HEADER_ERRORS, nib.wrapstruct.WrapStructError) as error:
            raise FileError(path, "this is not a NIfTI file; give a .nii or .nii.gz") from error
        if not header.is_single or min(header.get_data_shape(), default=0) < 1 or not numeric:
            raise FileError(path, "this is not a NIfTI file of one volume of numbers; convert it to .nii.gz")
        while len(content) < claimed and (chunk := stream.read(_CHUNK)):
            content += chunk
    if len(content) < claimed:
        raise FileError(
            path,
            f"its header claims {claimed} bytes for shape {header.get_data_shape()} "
            f"but the file holds {len(content)}; it is damaged or cut short, fetch it again",
        )
    try:
        return kind.from_bytes(bytes(content))
    except _HEADER_ERRORS as error:  # fields that are looked at when the data are
        raise FileError(path, f"its header makes no sense ({error}); repair it or fetch the file again") from error


def _check_offset(path: Path | str, kind: type[nib.Nifti1Header], content: bytes) -> None:
    """Refuses voxels that begin within the header; nibabel would read it as voxels where the offset is 0."""
    size = kind.template_dtype.itemsize
    if len(content) < size:
        return
    header = kind(content[:size], check=False)
    if header["magic"].item() == kind.single_magic and header["vox_offset"] < kind.single_vox_offset:
        raise FileError(
            path,
            f"its voxels begin at byte {header['vox_offset']:g} (vox_offset), which is in its header; "
            f"set {kind.single_vox_offset}, or fetch the file again",
        )


def _units(header: nib.Nifti1Header) -> str:
    """The units of space."""
    try:
        return header.get_xyzt_units()[0]
    except KeyError:
        return f"unknown to NIfTI, which has no code {int(header['xyzt_units'])}"


def _largest_displacement(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Millimetres between the two places of a corner of the grid, for the corner that moves most."""
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    difference = nib.affines.apply_affine(affine, corners) - nib.affines.apply_affine(other, corners)
    return float(np.linalg.norm(difference, axis=1).max())
