"""Finds predictions and their references by the name of the case."""

from pathlib import Path

from attn3d.segmentation.datasets.listing import files_by_name, stem
from attn3d.segmentation.errors import FileError

_BESIDE = ("probabilities", "entropy", "spread")  # suffixes of other images that `predict` writes for a case


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


def probabilities_of(prediction: Path) -> Path:
    """The file in which `attn3d.segmentation.predict` writes the probabilities of a case."""
    return prediction.with_name(f"{stem(prediction)}_probabilities.nii.gz")
