"""Finds predictions and their references by the name of the case, and reads existing predictions."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.datasets.listing import files_by_name, stem
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.files import check_same_grid, read_segmentation, read_volume
from attn3d.segmentation.labels import Labels

_BESIDE = ("probabilities", "entropy", "spread")  # suffixes of other images that `predict` writes for a case
_ALONE = "does not exist, but the labels do; segment the scan again (--overwrite)"


def find_pairs(prediction: Path, reference: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """The prediction and reference of each case, and the problem of each file that cannot be used.

    Args:
        prediction: a file, or a folder of files.
        reference: a file, or a folder of files with the same names. The other images that
            `attn3d.segmentation.predict` writes for a case are left out in both folders.

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
    beside = {f"{name}_{what}" for name in files for what in _BESIDE}
    return {name: path for name, path in files.items() if name not in beside}, twice


def beside(prediction: Path, what: str) -> Path:
    """The file of another image that `attn3d.segmentation.predict` writes beside labels, such as "probabilities"."""
    return prediction.with_name(f"{stem(prediction)}_{what}.nii.gz")


def remove_beside(prediction: Path) -> None:
    """Removes all other files that `attn3d.segmentation.predict` has written for a case."""
    for file in (*(beside(prediction, what) for what in _BESIDE), *_documents(prediction)):
        file.unlink(missing_ok=True)


def _documents(prediction: Path) -> list[Path]:
    return [prediction.with_name(f"{stem(prediction)}{ending}") for ending in (".png", ".html", ".dcm")]


def probabilities_of(prediction: Path) -> Path:
    """The file in which `attn3d.segmentation.predict` writes the probabilities of a case."""
    return beside(prediction, "probabilities")


def check_names(predictions: Mapping[Case, Path]) -> None:
    """Checks that the labels of no case have the name of another image of a case, see `beside`.

    Args:
        predictions: the label file of each case.

    Raises:
        FileError: when they have.
    """
    cases = {path: case for case, path in predictions.items()}
    for path, case in cases.items():
        for what in _BESIDE:
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


def read_map(path: Path, label: nib.Nifti1Image) -> np.ndarray:
    """Reads a measure of uncertainty beside existing labels.

    Raises:
        FileError: when the file does not exist, or is on another grid than the labels.
    """
    if not path.exists():
        raise FileError(path, _ALONE)
    image = read_volume(path)
    check_same_grid(path, image, label, "its labels")
    return np.asarray(image.dataobj)


def check_beside(path: Path, probabilities: bool, preview: bool, dicom_seg: bool) -> None:
    """Raises a `FileError` if a requested file beside existing labels does not exist."""
    endings = {"_probabilities.nii.gz": probabilities, ".png": preview, ".html": preview, ".dcm": dicom_seg}
    for ending, requested in endings.items():
        if requested and not (file := path.with_name(f"{stem(path)}{ending}")).exists():
            raise FileError(file, _ALONE)
