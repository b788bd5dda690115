"""NRRD and MetaImage files, which SimpleITK reads and writes."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.nifti import in_millimetres
from attn3d.segmentation.io.writing import finished_file

ENDINGS = (".nrrd", ".mha")
_TO_NIFTI = np.diag([-1.0, -1.0, 1.0])  # ITK's axes point left and back, NIfTI's right and forwards
_SHEARED = 1e-3  # largest cosine between axes that count as perpendicular
_SIZES = re.compile(rb"^(spacings|ElementSpacing|ElementSize)\s*[:=]", re.IGNORECASE | re.MULTILINE)
_SPACE = re.compile(rb"^space\s*:", re.IGNORECASE | re.MULTILINE)  # of NRRD
_VECTORS = re.compile(rb"^space directions\s*:.*\(", re.IGNORECASE | re.MULTILINE)  # not "none"
_MATRIX = re.compile(rb"^(TransformMatrix|Orientation|Rotation)\s*=", re.IGNORECASE | re.MULTILINE)  # of MetaImage
_HEADER = 1 << 16  # bytes at the start of a file that contain its header; voxels may follow
_END = re.compile(rb"\r?\n\r?\n|^ElementDataFile", re.IGNORECASE | re.MULTILINE)  # of the header
_READERS = {b"NRRD0": "NrrdImageIO", b"ObjectType": "MetaImageIO", b"NDims": "MetaImageIO"}  # by the start of a file


def itk_reader(path: Path | str) -> str | None:
    """ITK's reader of a NRRD or MetaImage file, by its content; the name may have another ending."""
    with Path(path).open("rb") as file:
        head = file.read(64)
    return next((reader for start, reader in _READERS.items() if head.startswith(start)), None)


def lacks_directions(path: Path | str) -> bool:
    """Whether a file is NRRD or MetaImage without the directions of its axes, for which ITK takes left, back and up."""
    if not Path(path).is_file() or itk_reader(path) is None:
        return False
    header = _header(path)
    return not (_MATRIX.search(header) or (_SPACE.search(header) and _VECTORS.search(header)))


def _header(path: Path | str) -> bytes:
    """The text at the start of a file, without its voxels."""
    with Path(path).open("rb") as file:
        return _END.split(file.read(_HEADER), maxsplit=1)[0]


def read_itk(path: Path | str) -> nib.Nifti1Image:
    """Reads a NRRD or MetaImage file. If voxels have several components, these are a fourth axis.

    Raises:
        FileError: when it cannot be read, is not 3-D, or has no size of its voxels, which ITK would read as 1 mm.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(itk_reader(path))
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileError(path, f"is damaged or incomplete ({reason}); download it again") from error
    if image.GetDimension() != 3:
        raise FileError(path, f"must be a 3-D volume, got {image.GetDimension()} axes")
    header = _header(path)
    if not (_SIZES.search(header) or _VECTORS.search(header)):
        names = "`space directions` or `spacings` in NRRD, `ElementSpacing` in MetaImage"
        raise FileError(path, f"its header has no size of the voxels ({names}); add it")
    affine = np.eye(4)
    affine[:3, :3] = _TO_NIFTI @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = _TO_NIFTI @ image.GetOrigin()
    voxels = np.moveaxis(sitk.GetArrayFromImage(image), (0, 2), (2, 0))
    return in_millimetres(voxels, affine, "scanner")


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes are not orthogonal, as with a tilted gantry. NRRD and MetaImage files do not support that."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _SHEARED)


def write_itk(path: Path | str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Writes a compressed volume in the format of the file's ending.

    The affine maps voxel indices to mm, and its axes are orthogonal, see `is_sheared`.
    """
    import SimpleITK as sitk

    spacing = nib.affines.voxel_sizes(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((_TO_NIFTI @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((_TO_NIFTI @ affine[:3, 3]).tolist())
    with finished_file(path) as unfinished:
        sitk.WriteImage(image, str(unfinished), useCompression=True)
