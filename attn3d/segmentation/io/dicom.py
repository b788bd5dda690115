"""Reads a DICOM series as a volume in millimetres.

pydicom reads the headers and SimpleITK the voxels. This module uses the position and the rescale slope of every slice
from its own header, and refuses files that are not exactly one volume.
"""

import locale
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.nifti import in_millimetres

_SAME_POSITION = 0.01  # mm
_UNEVEN = 0.1  # mm, and fraction of the slice distance, by which a slice may be off an even grid
_TO_NIFTI = np.diag([-1.0, -1.0, 1.0])  # DICOM's axes point left and back, NIfTI's right and forwards
_CONVERT = "convert it with dcm2niix"

logger = logging.getLogger("attn3d")


@dataclass(frozen=True)
class _Slice:
    """A slice: a ``frame`` of a file, the centre of its first voxel in mm, and the directions of its axes.

    GDCM replaces stored values x of MONOCHROME1 by ``inverted`` - x, since they are displayed from white to black.
    """

    path: Path
    frame: int
    corner: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    rescale: tuple[float, float]
    inverted: int | None


def is_dicom(path: Path | str) -> bool:
    """Whether a file is DICOM, by its content."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@contextmanager
def same_locale() -> Iterator[None]:
    """Restores the locale at the end, because GDCM can change that of the whole process to "C"."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def find_series(path: Path | str) -> tuple[dict[Path, Any], dict[Path, str]]:
    """The header of each file of the series in a folder or file, and the reason for every other DICOM file.

    Raises:
        FileError: when there are several series, a file of a scan is damaged, or one is named as a slice, but no DICOM.
    """
    path = Path(path)
    series: dict[str, dict[Path, Any]] = defaultdict(dict)
    others: dict[Path, str] = {}
    for file in filter(is_dicom, [path] if path.is_file() else sorted(path.iterdir())):
        header = _header(file)
        kind = header.file_meta.get("MediaStorageSOPClassUID", header.get("SOPClassUID"))
        scan = kind is not None and kind.name.endswith("Image Storage")
        if kind is None or (scan and not ("Rows" in header and "SeriesInstanceUID" in header)):
            raise FileError(file, "its header is damaged or incomplete; download it again")
        if not scan:
            others[file] = f"is not a scan ({kind.name})"
        elif not ("ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header):
            others[file] = f"is not a slice of a scan ({kind.name}): its header has no position"
        else:
            series[header.SeriesInstanceUID][file] = header
    if path.is_dir():
        _check_copied(path, [file for headers in series.values() for file in headers])
    if len(series) > 1:
        titles = "; ".join(map(_title, series.values()))
        raise FileError(path, f"contains {len(series)} DICOM series ({titles}); put each into its own folder")
    return next(iter(series.values()), {}), others


def _check_copied(folder: Path, slices: list[Path]) -> None:
    """Raises a `FileError` for a file that is named as the slices, but is not DICOM, as after an interrupted copy."""
    forms = {".dcm", *map(_form, slices)} if slices else set()
    for file in sorted(set(folder.iterdir()) - set(slices)):
        if _form(file) in forms and file.is_file() and not file.name.startswith(".") and not is_dicom(file):
            problem = "is not DICOM" if file.stat().st_size else "is empty"
            raise FileError(file, f"{problem}, but has a name like the slices beside it; copy it again, or move it")


def _form(file: Path) -> str:
    """The ending of a file's name in lower case, or without one its name with # for numbers, such as IM# or #.#.#."""
    return re.sub(r"\d+", "#", file.name) if file.suffix[1:].isdecimal() or not file.suffix else file.suffix.lower()


def read_series(path: Path | str) -> nib.Nifti1Image:
    """Reads the volume in a DICOM folder or in a multi-frame file; CT is in HU."""
    slices, _ = slices_of(path)
    affine = np.eye(4)
    affine[:3, :2] = _TO_NIFTI @ (slices[0].directions * slices[0].spacing)
    affine[:3, 2] = _TO_NIFTI @ _step(path, slices)
    affine[:3, 3] = _TO_NIFTI @ slices[0].corner
    return in_millimetres(_voxels(path, slices), affine, "scanner")


def slices_of(path: Path | str) -> tuple[list[_Slice], dict[Path, Any]]:
    """The slices of the volume in a folder or file, along the volume's last axis, and the header of each file."""
    headers, others = find_series(path)
    for file, problem in others.items():
        logger.warning("left out: %s: %s", file, problem)
    if not headers:
        what = "is a folder without a DICOM series" if Path(path).is_dir() else "contains no DICOM series"
        why = "".join(f" ({file.name} {problem})" for file, problem in list(others.items())[:1])
        raise FileError(path, f"{what}{why}; give a NIfTI file, or a folder of one series")
    return _in_order(path, [one for file, header in headers.items() for one in _slices(file, header)]), headers


def _header(file: Path) -> Any:
    import pydicom

    try:
        with warnings.catch_warnings(action="ignore"):  # for values that are not used
            return pydicom.dcmread(file, stop_before_pixels=True)
    except Exception as error:  # pydicom raises many kinds
        raise FileError(file, f"its header is damaged ({' '.join(str(error).split())}); download it again") from error


def _title(headers: dict[Path, Any]) -> str:
    first = next(iter(headers.values()))
    files = f"{len(headers)} file{'s' if len(headers) > 1 else ''}"
    return (
        f"{first.get('Modality', '')} {str(first.get('SeriesDescription', '')) or 'without a description'!r}, {files}"
    )


def _slices(file: Path, header: Any) -> list[_Slice]:
    """The slices in a file."""
    if "MOSAIC" in header.get("ImageType", ()):
        raise FileError(file, f"is a mosaic: one image with all slices of a volume; {_CONVERT}")
    try:
        inverted = None
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            inverted = -1 if header.PixelRepresentation else 2**header.BitsStored - 1
        if "PerFrameFunctionalGroupsSequence" not in header:
            if (frames := int(header.get("NumberOfFrames") or 1)) > 1:
                raise FileError(file, f"has {frames} frames without the position of each; {_CONVERT}")
            return [_slice(file, 0, inverted, header)]
        shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
        return [
            _slice(file, number, inverted, _in_groups(frame, shared))
            for number, frame in enumerate(header.PerFrameFunctionalGroupsSequence)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FileError(file, f"its header does not have the positions of its slices ({error}); {_CONVERT}") from error


def _in_groups(frame: Any, shared: Any) -> dict[str, Any]:
    """The values in the groups of a frame, or for a group that it lacks, in that of all frames."""
    names = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    groups = [frame.get(f"{name}Sequence") or shared.get(f"{name}Sequence") or [()] for name in names]
    return {element.keyword: element.value for group in groups for element in group[0]}


def _slice(file: Path, frame: int, inverted: int | None, values: Any) -> _Slice:
    directions = np.array(values.get("ImageOrientationPatient"), float).reshape(2, 3).T
    between_rows, between_columns = map(float, values.get("PixelSpacing"))
    thickness = values.get("SpacingBetweenSlices") or values.get("SliceThickness")
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")  # None if they are empty, too
    made = _Slice(
        path=file,
        frame=frame,
        corner=np.array(values.get("ImagePositionPatient"), float).reshape(3),
        directions=directions / np.linalg.norm(directions, axis=0),
        spacing=(between_columns, between_rows),
        thickness=abs(float(thickness)) if thickness else None,
        rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
        inverted=inverted,
    )
    if not (np.isfinite(made.corner).all() and np.isfinite(made.directions).all()):
        raise ValueError("position or orientation is not finite")
    return made


def _in_order(path: Path | str, slices: list[_Slice]) -> list[_Slice]:
    """The slices in the order of their positions; raises a `FileError` if they are not one even stack."""
    first = slices[0]
    normal = np.cross(*first.directions.T)
    for one in slices[1:]:
        if not np.allclose(one.directions, first.directions, atol=1e-3) or not np.allclose(one.spacing, first.spacing):
            raise FileError(
                path,
                f"its slices {first.path.name} and {one.path.name} have different directions or pixel spacings; "
                "keep only one stack of slices in the folder",
            )
    slices = sorted(slices, key=lambda one: float(one.corner @ normal))
    heights = np.array([one.corner @ normal for one in slices])
    steps = np.diff(heights)
    if (steps < _SAME_POSITION).any():
        places = np.split(heights, np.flatnonzero(steps >= _SAME_POSITION) + 1)
        least, most = min(map(len, places)), max(map(len, places))
        each = f"{least}" if least == most else f"{least} to {most}"
        raise FileError(
            path,
            f"contains {len(slices)} slices at {len(places)} position{'s' if len(places) > 1 else ''}, {each} at each "
            "(a series in time, of echoes or of directions); keep only the files of one volume",
        )
    if len(steps) and (np.abs(steps - np.median(steps)) > _UNEVEN * min(1.0, np.median(steps))).any():
        at = int(np.abs(steps - np.median(steps)).argmax())
        below, above = (f"{one.path.name}{f' frame {one.frame}' if one.frame else ''}" for one in slices[at : at + 2])
        raise FileError(
            path,
            f"the distance from {below} to {above} is {steps[at]:.3g} mm, and between other slices "
            f"{np.median(steps):.3g} mm: a slice is missing, or the series has two spacings",
        )
    return slices


def _step(path: Path | str, slices: Sequence[_Slice]) -> np.ndarray:
    """The vector from one slice to the next in mm. It is not perpendicular to the slices if the gantry was tilted."""
    if len(slices) > 1:
        step = (slices[-1].corner - slices[0].corner) / (len(slices) - 1)
        even = slices[0].corner + np.outer(np.arange(len(slices)), step)
        off = np.linalg.norm([one.corner for one in slices] - even, axis=1).max()
        if off > _UNEVEN:
            raise FileError(path, f"its slices are up to {off:.3g} mm off a straight line; {_CONVERT}")
        return step
    if slices[0].thickness is None:
        raise FileError(path, f"is one slice without a thickness; {_CONVERT}, and check the spacing")
    return slices[0].thickness * np.cross(*slices[0].directions.T)


@same_locale()
def _voxels(path: Path | str, slices: Sequence[_Slice]) -> np.ndarray:
    """(columns, rows, slices) as float32, each slice with its own rescale slope and intercept."""
    import SimpleITK as sitk

    frames: dict[Path, np.ndarray] = {}
    for file, one in {one.path: one for one in slices}.items():
        if len({one.rescale for one in slices if one.path == file}) > 1:
            raise FileError(file, f"its frames have different rescale slopes; {_CONVERT}")
        try:
            image = sitk.ReadImage(str(file))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise FileError(file, f"its voxels cannot be read ({reason}); download it again") from error
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise FileError(file, f"contains colours, not intensities; {_CONVERT}")
        found = sitk.GetArrayFromImage(image)
        if one.inverted is not None:
            slope, intercept = one.rescale
            found = slope * one.inverted + 2 * intercept - found
        frames[file] = found.astype(np.float32)
    shape = frames[slices[0].path].shape[1:]
    if odd := [file for file, voxels in frames.items() if voxels.shape[1:] != shape]:
        raise FileError(path, f"its slices have different sizes: {odd[0].name} differs from {slices[0].path.name}")
    return np.stack([frames[one.path][one.frame].T for one in slices], axis=-1)
