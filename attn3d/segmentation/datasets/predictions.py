"""Finds predictions and their references by the name of the case, and reads existing predictions."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.datasets.listing import files_by_name, stem
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.files import read_segmentation
from attn3d.segmentation.labels import Labels

_IMAGES = ("probabilities", "entropy", "spread")  # that `predict` writes beside the labels of a case
_DOCUMENTS = ("png", "html", "dcm")


def find_pairs(prediction: Path, reference: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """The prediction and reference of each case, and the problem of each file that cannot be used.

    Both are files, or folders of files with the same names. The other images that `attn3d.segmentation.predict` writes
    for a case are left out.

    Raises:
        FileError: when one does not exist, when one is a file and the other a folder, or when no names agree.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise FileError(path, "does not exist; give a NIfTI file or a folder of them")
    if prediction.is_dir() != reference.is_dir():
        file = reference if prediction.is_dir() else prediction
        raise FileError(file, "is a file, but the other path is a folder; give two files or two folders")
    if not prediction.is_dir():
        return {stem(reference): (prediction, reference)}, {}
    (predictions, twice), (references, others) = _label_maps(prediction), _label_maps(reference)
    failed = {str(path): problem for path, problem in (twice | others).items()}
    ambiguous = {stem(path) for path in failed}
    pairs = {name: (predictions[name], path) for name, path in references.items() if name in predictions}
    if not pairs and not failed:
        raise FileError(prediction, "no prediction in it has the name of a reference; give both the same name")
    for files, other in ((predictions, reference), (references, prediction)):
        alone = [path for name, path in files.items() if name not in pairs.keys() | ambiguous]
        failed |= {str(path): f"has no file of the same name in {other}" for path in alone}
    return pairs, failed


def _label_maps(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """As `files_by_name`, without the other images of a case."""
    files, twice = files_by_name(folder)
    images = {beside(path, what) for path in files.values() for what in _IMAGES}
    return {name: path for name, path in files.items() if path not in images}, twice


def beside(prediction: Path, what: str) -> Path:
    """The file that `attn3d.segmentation.predict` writes beside the labels of a case.

    ``what`` is "probabilities", "entropy" or "spread", each an image, or "png", "html" or "dcm".
    """
    ending = f"_{what}.nii.gz" if what in _IMAGES else f".{what}"
    return prediction.with_name(f"{stem(prediction)}{ending}")


def remove_beside(prediction: Path) -> None:
    """Removes all files that `attn3d.segmentation.predict` has written beside the labels of a case."""
    for what in (*_IMAGES, *_DOCUMENTS):
        beside(prediction, what).unlink(missing_ok=True)


def check_names(predictions: Mapping[Case, Path]) -> None:
    """Raises a `FileError` if the labels of a case have the name of another image of a case, see `beside`."""
    cases = {path: case for case, path in predictions.items()}
    for path, case in cases.items():
        for what in _IMAGES:
            if other := cases.get(beside(path, what)):
                raise FileError(
                    other.images[0],
                    f"its labels would have the name of the {what} of {case.images[0]}; rename one of them",
                )


def read_labels(path: Path, labels: Labels) -> nib.Nifti1Image:
    """Reads existing labels.

    Raises:
        FileError: as `read_segmentation`, and when they have a value that is never predicted with ``labels``.
    """
    found = read_segmentation(path)
    voxels = np.asarray(found.dataobj)
    if len(odd := voxels[~np.isin(voxels, (0, *labels.written))]):
        raise FileError(path, f"has the value {odd.min()}, which the run never writes; segment it again (--overwrite)")
    return found


def check_beside(path: Path, probabilities: bool, preview: bool, dicom_seg: bool) -> None:
    """Raises a `FileError` if a requested file beside existing labels does not exist."""
    requested = {"probabilities": probabilities, "png": preview, "html": preview, "dcm": dicom_seg}
    for what, wanted in requested.items():
        if wanted and not (file := beside(path, what)).exists():
            omit = ", or omit --dicom-seg" if what == "dcm" else ""
            raise FileError(file, f"does not exist, but the labels do; segment the scan again (--overwrite){omit}")
