"""Reads scans and labels with checks, and writes labels in the geometry of their scan.

NIfTI, DICOM and ITK's formats are in other modules. This module refuses affines that are not a valid geometry, and
labels that are not whole numbers or are on another grid. Files are written completely or not at all.
"""

import logging
import zlib
from collections.abc import Collection
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.dicom import is_dicom, read_series
from attn3d.segmentation.io.itk import ENDINGS, is_sheared, itk_reader, lacks_directions, read_itk, write_itk
from attn3d.segmentation.io.nifti import in_millimetres, read_nifti, write_nifti

logger = logging.getLogger("attn3d")
_OFF_WHOLE = 1e-3  # the largest difference of a label from a whole number
_OFF_GRID = 0.1  # the largest distance from the grid, in units of the smallest side of its voxels
_SPACINGS = (0.01, 50.0)  # mm
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def read_image(path: Path | str) -> nib.Nifti1Image:
    """Reads a 3-D scan as float32, with an unchanged header.

    Args:
        path: a NIfTI-1 or NIfTI-2 file, compressed or not, a NRRD or MetaImage file, the folder of a DICOM series, or a
            multi-frame DICOM file. The format is detected from the content. Trailing axes of length 1 are dropped.

    Raises:
        FileError: when the file is missing, truncated, of another format or not 3-D, when its affine is not a valid
            geometry, when a voxel is not finite, or when all voxels are equal; when DICOM is not one volume of slices
            at equal distances (a shift by a tilted gantry is allowed).
    """
    image = read_series(path) if Path(path).is_dir() or is_dicom(path) else _read(path)
    return _scan(path, image, image.get_fdata(dtype=np.float32))


def read_images(path: Path | str, volumes: int) -> list[nib.Nifti1Image]:
    """Reads the volumes of a 4-D file, as the Decathlon has for several modalities, each as a scan by `read_image`."""
    image = _read(path, volumes)
    data = (np.array(image.dataobj[..., index], np.float32) for index in range(volumes))  # nibabel's are read-only
    return [_scan(path, image, one) for one in data]


def _scan(path: Path | str, image: nib.Nifti1Image, data: np.ndarray) -> nib.Nifti1Image:
    """A volume of an image as a scan, after checks of its voxel size and its values."""
    if not _has_orientation(image):
        _warn_of_sides(str(path), "qform_code and sform_code are 0")
    elif lacks_directions(path):
        _warn_of_sides(str(path), "NRRD needs `space` and `space directions`, MetaImage `TransformMatrix`")
    _check_spacing(path, image.affine)
    if bad := data.size - np.count_nonzero(np.isfinite(data)):
        raise FileError(path, f"{bad} voxels are NaN or infinite; replace them, for example by 0")
    if data.min() == data.max():
        raise FileError(path, f"every voxel has the same value {data.min():g}; this is not a scan")
    return type(image)(data.reshape(data.shape[:3]), image.affine, image.header, dtype=np.float32)


def read_map(path: Path | str, image: nib.Nifti1Image, volumes: int | None = 1) -> nib.Nifti1Image:
    """Reads values of voxels that `predict` wrote beside labels. They are scaled on access.

    Args:
        path: a 3-D file of a measure of uncertainty, or a 4-D file of the probabilities of classes.
        image: a volume with the required grid.
        volumes: the number of volumes that it must have; None for any number in a 4-D file.

    Raises:
        FileError: when the file is missing, truncated, not a NIfTI file of so many volumes, or on another grid; when a
            voxel of a measure is not finite.
    """
    if not Path(path).exists():
        option = "--uncertainty" if volumes == 1 else "--probabilities"
        raise FileError(path, f"does not exist; `attn3d predict {option} --overwrite` writes it")
    found = on_grid_of(path, _read(path, volumes), image, "its labels")
    if volumes == 1 and not np.isfinite(np.asarray(found.dataobj)).all():
        raise FileError(path, "has voxels that are NaN or infinite; segment the scan again (--overwrite)")
    return found


def read_segmentation(
    path: Path | str,
    image: nib.Nifti1Image | None = None,
    values: Collection[int] | None = None,
    *,
    threshold: float | None = None,
    of: str = "its image",
) -> nib.Nifti1Image:
    """Reads a reference or a prediction as uint8. It may be empty.

    Args:
        path: a file of whole numbers, or of numbers that differ from whole numbers by less than a thousandth.
        image: a volume with the required grid; by default any grid is allowed.
        values: the allowed values; by default 0 to 255.
        threshold: for masks of other numbers: values above it become 1, all others 0.
        of: what errors call ``image``.

    Raises:
        FileError: as `read_image`; and when the segmentation is on another grid or has another value.
    """
    label = _read(path)
    _check_spacing(path, label.affine)
    if image is not None:
        label = on_grid_of(path, label, image, of)
    data = np.asanyarray(label.dataobj).reshape(label.shape[:3])
    if image is None:
        image = type(label)(data, label.affine, label.header)
    if threshold is not None:
        if not np.isfinite(data).all():
            raise FileError(path, "the mask contains NaN or infinite values; replace them by 0")
        data = data > threshold
    elif data.dtype.kind == "f":
        whole = np.rint(data)  # a scale factor may have changed the values a little
        data = np.where(np.abs(data - whole) <= _OFF_WHOLE, whole, data)
    known = "whole numbers from 0 to 255" if values is None else ", ".join(map(str, sorted(values)))
    known_at_sight = values is None and data.dtype == np.uint8
    for value in () if known_at_sight else values_in(data):
        if value not in (range(256) if values is None else values):
            raise FileError(path, f"the label contains the value {value:.6g}; map its values to {known}")
    return type(image)(data.astype(np.uint8), image.affine, image.header, dtype=np.uint8)


def values_in(data: np.ndarray) -> np.ndarray:
    """The distinct values of an array in ascending order, read in the order of memory."""
    return np.unique(data.ravel(order="K"))


def on_grid_of(
    path: Path | str, image: nib.Nifti1Image, other: nib.Nifti1Image, of: str = "its image"
) -> nib.Nifti1Image:
    """An image with its axes in the order and direction of another image, after a check that both have the same grid.

    Some programs store axes in another order or direction. Axes are permuted and flipped, nothing is interpolated.

    Args:
        path: the file of ``image``.
        image: the image to check.
        other: the image with the required grid.
        of: what errors call ``other``.

    Raises:
        FileError: when the shapes differ, or the distance between two voxels is more than a tenth of the smallest side
            of a voxel; the error names ``path``.
    """
    found, known = image, _has_orientation(image)
    if known and _has_orientation(other):  # from the voxels of one to those of the other: obliqueness cancels out
        found = image.as_reoriented(nib.io_orientation(np.linalg.inv(other.affine) @ image.affine))
    if found.shape[:3] != other.shape[:3]:
        raise FileError(
            path, f"it has shape {image.shape[:3]}, but {of} has {other.shape[:3]}; resample it to that grid"
        )
    distance = _largest_displacement(found.affine, other.affine, other.shape[:3])
    if distance <= _OFF_GRID * nib.affines.voxel_sizes(other.affine).min():
        return found
    if known != _has_orientation(other):
        without, oriented = (of, "it") if known else ("it", of)
        raise FileError(
            path,
            f"it cannot be placed on the grid of {of}: {without} has no orientation in its header (qform_code and "
            f"sform_code are 0), but {oriented} has one; give both the header that is right",
        )
    advice = _two_positions(image, "it") or _two_positions(other, of) or "resample it to that grid"
    off = f"it is up to {distance:.3g} mm off the grid of {of}, more than a tenth of the smallest side of a voxel"
    raise FileError(path, f"{off}; {advice}")


def _has_orientation(image: nib.Nifti1Image) -> bool:
    """Whether the affine is from the header. Otherwise nibabel and ITK place the voxels differently."""
    return bool(image.header["qform_code"] or image.header["sform_code"])


@cache  # a training reads its scans several times
def _warn_of_sides(path: str, reason: str) -> None:
    """Warns that a scan has no orientation, once for each file. nibabel and ITK assume the same side."""
    logger.warning(
        "%s: has no orientation in its header (%s); right and left are uncertain: the first axis is assumed to run to "
        "the left",
        path,
        reason,
    )


def _two_positions(image: nib.Nifti1Image, of: str) -> str:
    """Advice for a volume whose qform and sform differ; empty for other volumes."""
    header = image.header
    qform, sform = (int(header[f"{form}_code"]) for form in ("qform", "sform"))
    if not (qform and sform) or _largest_displacement(header.get_qform(), header.get_sform(), image.shape[:3]) < 0.1:
        return ""
    forms = (header.get_qform(), header.get_sform())
    origins = ["(" + ", ".join(f"{mm:g}" for mm in form[:3, 3]) + ")" for form in forms]
    return (
        f"{of} has two positions in its header: the qform (code {qform}) has the origin {origins[0]} mm, the sform "
        f"(code {sform}) {origins[1]} mm. attn3d uses the sform; ITK uses it only if its code is 1 or the qform's is "
        "0. Find out which one is right and write it to both; resampling would move a correct label"
    )


def write_image(
    path: Path | str, data: np.ndarray, affine: np.ndarray, code: str = "aligned", intercept: float = 0.0
) -> None:
    """Writes a new volume in millimetres, with equal qform and sform.

    Args:
        path: the file to write. It exists only when it is complete.
        data: the voxels, in a type of NIfTI (uint8, int16, float32, ..).
        affine: maps voxel indices to millimetres.
        code: the NIfTI code of the affine's space: "scanner", "aligned", "talairach" or "mni".
        intercept: the value that readers add to ``data``, for files that store HU + 1024.

    Raises:
        ValueError: when ``path`` does not end in .nii or .nii.gz, or ``data`` are 64-bit integers.
    """
    if data.dtype in (np.int64, np.uint64):
        raise ValueError(f"`data` must have a type that all programs read, such as int32 or float32, got {data.dtype}")
    image = in_millimetres(data, affine, code)
    if intercept:
        image.header.set_slope_inter(1.0, intercept)
    write_nifti(path, image)


def write_map(path: Path | str, values: np.ndarray, like: nib.Nifti1Image) -> None:
    """Writes values of voxels as float32 in the geometry of the scan ``like``, as `write_label`.

    They have the shape of the scan, and may have any number of further axes.
    """
    _write(path, nib.Nifti1Image(values.astype(np.float32), like.affine), like)


def check_format(path: Path | str, like: nib.Nifti1Image) -> None:
    """Raises a `FileError` if a file ends in .nrrd or .mha, and these formats do not support the geometry of a scan."""
    if not Path(path).name.endswith(ENDINGS):
        return
    if not _has_orientation(like):
        raise FileError(
            path, "its format needs the orientation that the scan does not have; write NIfTI (--format nii.gz)"
        )
    if is_sheared(like.affine):
        raise FileError(path, "its format does not support the sheared axes of the scan; write NIfTI (--format nii.gz)")


def write_label(path: Path | str, labels: np.ndarray, like: nib.Nifti1Image) -> None:
    """Writes labels as uint8 in the geometry of ``like``: affines, their codes and units, or millimetres without units.

    Labels of a scan without codes have none either: nibabel and ITK place such scans differently, but each places both
    in the same way.

    Args:
        path: the file to write, in NRRD or MetaImage if it ends in .nrrd or .mha. It exists only when it is complete.
        labels: whole numbers from 0 to 255, in the shape of ``like``.
        like: the scan that was segmented, from `read_image`.

    Raises:
        FileError: as `check_format`.
        ValueError: when ``labels`` has another shape or values outside of uint8, or ``path`` does not end in .nii,
            .nii.gz, .nrrd or .mha.
    """
    if labels.shape != like.shape:
        raise ValueError(f"`labels` must have the scan's shape {like.shape}, got {labels.shape}")
    if len(odd := labels[labels != labels.astype(np.uint8)]):
        raise ValueError(f"`labels` must be whole numbers from 0 to 255, got {odd[0]:g}")
    check_format(path, like)
    if Path(path).name.endswith(ENDINGS):
        write_itk(path, labels.astype(np.uint8), like.affine)
        return
    image = type(like)(labels.astype(np.uint8), like.affine)
    image.header.set_intent("label")
    _write(path, image, like)


def _write(path: Path | str, image: nib.Nifti1Image, like: nib.Nifti1Image) -> None:
    """Writes an image with the affines, their codes and the units of ``like``."""
    for field in _GEOMETRY:
        image.header[field] = like.header[field]
    if like.header.get_xyzt_units()[0] == "unknown":
        image.header.set_xyzt_units("mm")
    write_nifti(path, image)


def _read(path: Path | str, volumes: int | None = 1) -> nib.Nifti1Image:
    """Reads a file of so many volumes, or 4-D of any number for None, with the checks of scans and of labels."""
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise FileError(path, "is a pipe or a device, not a file; give a .nii or .nii.gz")
    try:
        image = read_itk(path) if Path(path).is_file() and itk_reader(path) else read_nifti(path)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise FileError(path, "the compressed file is damaged or incomplete; download it again") from error
    if volumes != 1 and (len(image.shape) != 4 or volumes not in (None, image.shape[3])):
        advice = f"; or give one file per volume, _0000 to _{volumes - 1:04d}" if volumes else ""
        raise FileError(path, f"must be a 4-D file of {volumes or 'several'} volumes, got shape {image.shape}{advice}")
    if volumes == 1 and (len(image.shape) < 3 or any(size != 1 for size in image.shape[3:])):
        more = ", or name its modalities in the dataset.json of a Decathlon" if len(image.shape) == 4 else ""
        raise FileError(path, f"must be a 3-D volume, got shape {image.shape}; extract one volume first{more}")
    if (units := _units(image.header)) not in ("mm", "unknown"):
        raise FileError(path, f"its units are {units}; convert it to millimetres")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise FileError(path, "its affine is not finite or not invertible; repair the header's sform or qform")
    return image


def _check_spacing(path: Path | str, affine: np.ndarray) -> None:
    """Raises a `FileError` for voxel sizes that no scan has, since all distances in mm would be wrong."""
    sizes, (least, most) = nib.affines.voxel_sizes(affine), _SPACINGS
    if sizes.min() < least or sizes.max() > most:
        found = " x ".join(f"{size:.3g}" for size in sizes)
        must = f"must be {least:g} to {most:g} mm; repair the spacing or its units"
        raise FileError(path, f"its voxels are {found} mm, but {must}")


def _units(header: nib.Nifti1Header) -> str:
    """The spatial units, or an explanation if their code is unknown."""
    try:
        return header.get_xyzt_units()[0]
    except KeyError:
        return f"unknown to NIfTI, which has no code {int(header['xyzt_units'])}"


def _largest_displacement(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between a corner of the grid under one affine and under the other."""
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    difference = nib.affines.apply_affine(affine, corners) - nib.affines.apply_affine(other, corners)
    return float(np.linalg.norm(difference, axis=1).max())
