"""What the layouts share: names of files, pairs, and descriptions in JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.files import FileError

SUFFIXES = (".nii.gz", ".nii")

Files = dict[str, tuple[Path, ...]]


def stem(path: Path | str) -> str:
    """A file's name without .nii or .nii.gz."""
    name = Path(path).name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def nifti_files(folder: Path) -> dict[str, Path]:
    """The NIfTI files right in a folder by their names, hidden ones left out; none if there is no such folder.

    Raises:
        FileError: when a name is there twice, once compressed and once not.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.nii*")):
        if path.name.endswith(SUFFIXES) and not path.name.startswith("."):
            if stem(path) in found:
                raise FileError(path, f"is there as {found[stem(path)].name} too; remove one of them")
            found[stem(path)] = path
    return found


def one_each(files: Mapping[str, Path]) -> Files:
    """Names with a file each, as `pair` takes them."""
    return {name: (path,) for name, path in files.items()}


def pair(images: Files, labels: Files) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Cases of the names that have both, and a line for each file that has no partner."""
    both = sorted(images.keys() & labels.keys())
    problems = [f"{images[name][0]}: has no label" for name in sorted(images.keys() - labels.keys())]
    problems += [f"{labels[name][0]}: has no image" for name in sorted(labels.keys() - images.keys())]
    return tuple(Case(name, images[name], labels[name]) for name in both), tuple(problems)


def description(folder: Path) -> dict | None:
    """The folder's dataset.json, None if it has none.

    Raises:
        FileError: when it is no JSON object.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(path, f"is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileError(path, f"a JSON object is needed, got {type(content).__name__}")
    return content


def modality(names: Iterable[object]) -> str:
    """ "CT" or "MRI" when the channels' names say so, else "unknown"."""
    words = [str(name).upper() for name in names]
    if words and all(word.startswith("CT") for word in words):
        return "CT"
    mri = ("MR", "T1", "T2", "FLAIR", "DWI", "ADC", "PD")
    return "MRI" if words and all(word.startswith(mri) for word in words) else "unknown"
