"""Functions for all layouts: names of files, pairs, channels, and ``dataset.json``."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.itk import ENDINGS
from attn3d.segmentation.io.writing import read_json

SUFFIXES = (".nii.gz", ".nii", *ENDINGS)
_OTHER_FORMATS = (*(".nhdr", ".mhd", ".hdr", ".img", ".mgz", ".mgh"), *(".dcm", ".npy", ".npz", ".gz", ".zip"))

_LABELS = ("_label", "_seg", "_mask")

Files = dict[str, tuple[Path, ...]]


def stem(path: Path | str) -> str:
    """A file's name without .nii.gz, .nii, .nrrd or .mha, in upper or lower case."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def image_of(name: str) -> str | None:
    """The name of the image whose label has this name, such as ``case`` for ``case_label``; None for other names."""
    return next((name.removesuffix(ending) for ending in _LABELS if name.endswith(ending)), None)


def volume_files(folder: Path) -> dict[str, Path]:
    """The volumes in a folder by name, without subfolders and hidden files. Empty if the folder does not exist.

    A repeated name, for example compressed and uncompressed, raises a `FileError`.
    """
    found, twice = files_by_name(folder)
    for path, problem in twice.items():
        raise FileError(path, problem)
    return found


def files_by_name(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """As `volume_files`, but files with a repeated name are left out; the second result has their problems."""
    named: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            named[stem(path)].append(path)
    twice = {
        path: f"also exists as {next(other.name for other in paths if other != path)}; remove one of them"
        for paths in named.values()
        for path in paths
        if len(paths) > 1
    }
    return {name: paths[0] for name, paths in named.items() if len(paths) == 1}, twice


def files_at(folder: Path, place: str) -> Files:
    """Volumes by the name of their case, which is the first ``*`` of a path.

    Args:
        folder: the folder of the data set.
        place: a path such as ``images/*``, or ``scans/*/label_*`` if each case has a folder with one or several files.
    """
    above, _, name = place.rpartition("/")
    if not above.endswith("*"):
        return {case: (path,) for case, path in volume_files(folder / above).items()}
    found = {
        case.name: tuple(path for stem, path in volume_files(case).items() if fnmatchcase(stem, name))
        for case in sorted(folder.glob(above))
    }
    return {case: files for case, files in found.items() if files}


def unread(folder: Path, *places: str) -> dict[str, str]:
    """The problem of each volume in the folders of ``places`` whose format is not supported."""
    files = [path for place in places for path in sorted(folder.glob(f"{place.rpartition('/')[0]}/*".lstrip("/")))]
    return {
        str(path): "is not NIfTI, NRRD or MHA; convert it to .nii.gz"
        for path in files
        if path.name.lower().endswith(_OTHER_FORMATS) and not path.name.lower().endswith(SUFFIXES)
    }


def pair(images: Files, labels: Files) -> tuple[tuple[Case, ...], dict[str, str]]:
    """The cases with an image and a label, and the problem of each file without a partner."""
    both = sorted(images.keys() & labels.keys())
    problems = {str(images[name][0]): "has no label" for name in sorted(images.keys() - labels.keys())}
    problems |= {str(labels[name][0]): "has no image" for name in sorted(labels.keys() - images.keys())}
    return tuple(Case(name, images[name], labels[name]) for name in both), problems


def channels(files: Mapping[str, Path], number: int) -> tuple[Files, dict[Path, str]]:
    """The files of each case in the order of its channels, and the problem of each other file.

    The names of a case end in _0000, _0001, .., with exactly ``number`` channels.
    """
    needed = [f"{channel:04d}" for channel in range(number)]
    problems: dict[Path, str] = {}
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, path in files.items():
        case, _, channel = name.rpartition("_")
        if case and len(channel) == 4 and channel.isdecimal():
            found[case][channel] = path
        else:
            problems[path] = f"is not a channel from _0000 to _{number - 1:04d}, such as {name}_0000"
    for case in [case for case, parts in found.items() if sorted(parts) != needed]:
        parts = found.pop(case)
        problem = f"its case has the channels {', '.join(sorted(parts))}, but needs {', '.join(needed)}"
        problems |= dict.fromkeys(parts.values(), problem)
    return {case: tuple(parts[channel] for channel in needed) for case, parts in found.items()}, problems


def description(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's dataset.json, or None if there is no such file."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise FileError(path, f"must be a JSON object, got {type(content).__name__}")
    return content


def modality(names: Iterable[object]) -> str:
    """Returns "CT" or "MRI" if the names of the channels show it, otherwise "unknown"."""
    words = [str(name).upper() for name in names]
    if words and all(word.startswith("CT") for word in words):
        return "CT"
    mri = ("MR", "T1", "T2", "FLAIR", "DWI", "ADC", "PD")
    return "MRI" if words and all(word.startswith(mri) for word in words) else "unknown"
