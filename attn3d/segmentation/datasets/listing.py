"""What the layouts share: names of files, pairs, channels, and descriptions in JSON."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.writing import read_json

SUFFIXES = (".nii.gz", ".nii")
_OTHER_FORMATS = (
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mgz", ".mgh"),
    *(".dcm", ".npy", ".npz", ".gz", ".zip"),
)

Files = dict[str, tuple[Path, ...]]


def stem(path: Path | str) -> str:
    """A file's name without .nii or .nii.gz, in whatever case."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def nifti_files(folder: Path) -> dict[str, Path]:
    """The NIfTI files right in a folder by their names, hidden ones left out; none if there is no such folder.

    Raises:
        FileError: when a name is there twice, such as compressed and not.
    """
    found, twice = files_by_name(folder)
    for path, problem in twice.items():
        raise FileError(path, problem)
    return found


def files_by_name(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """As `nifti_files`; but names that are there twice are left out, and what is wrong with them is given by file."""
    named: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            named[stem(path)].append(path)
    twice = {
        path: f"is there as {next(other.name for other in paths if other != path)} too; remove one of them"
        for paths in named.values()
        for path in paths
        if len(paths) > 1
    }
    return {name: paths[0] for name, paths in named.items() if len(paths) == 1}, twice


def files_at(folder: Path, place: str) -> Files:
    """NIfTI files by the name of their case, which the first ``*`` of a place stands for.

    Args:
        folder: of the data set.
        place: such as ``images/*``, or ``scans/*/label_*`` where a case has a folder and perhaps several files in it.

    Raises:
        FileError: as `nifti_files`.
    """
    above, _, name = place.rpartition("/")
    if not above.endswith("*"):
        return one_each(nifti_files(folder / above))
    found = {
        case.name: tuple(path for stem, path in nifti_files(case).items() if fnmatchcase(stem, name))
        for case in sorted(folder.glob(above))
    }
    return {case: files for case, files in found.items() if files}


def unread(folder: Path, *places: str) -> tuple[str, ...]:
    """A line for each volume in the folders of some places that is in another format than NIfTI."""
    files = [path for place in places for path in sorted(folder.glob(f"{place.rpartition('/')[0]}/*".lstrip("/")))]
    return tuple(
        f"{path}: is no NIfTI file; convert it to .nii.gz"
        for path in dict.fromkeys(files)
        if path.name.lower().endswith(_OTHER_FORMATS) and not path.name.lower().endswith(SUFFIXES)
    )


def one_each(files: Mapping[str, Path]) -> Files:
    """Names with a file each, as `pair` takes them."""
    return {name: (path,) for name, path in files.items()}


def pair(images: Files, labels: Files) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Cases of the names that have both, and a line for each file that has no partner."""
    both = sorted(images.keys() & labels.keys())
    problems = [f"{images[name][0]}: has no label" for name in sorted(images.keys() - labels.keys())]
    problems += [f"{labels[name][0]}: has no image" for name in sorted(labels.keys() - images.keys())]
    return tuple(Case(name, images[name], labels[name]) for name in both), tuple(problems)


def channels(files: Mapping[str, Path], number: int) -> tuple[Files, dict[Path, str]]:
    """The files of each case in the order of its channels, and what is wrong by file.

    Args:
        files: by name; those of a case end in _0000, _0001 and on.
        number: how many channels a case has, no fewer and no more.
    """
    needed = [f"{channel:04d}" for channel in range(number)]
    problems: dict[Path, str] = {}
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, path in files.items():
        case, _, channel = name.rpartition("_")
        if case and len(channel) == 4 and channel.isdecimal():
            found[case][channel] = path
        else:
            problems[path] = f"is no channel from _0000 to _{number - 1:04d}, as {name}_0000 would be"
    for case in [case for case, parts in found.items() if sorted(parts) != needed]:
        parts = found.pop(case)
        problem = f"its case has the channels {', '.join(sorted(parts))}; needed are {', '.join(needed)}"
        problems |= dict.fromkeys(parts.values(), problem)
    return {case: tuple(parts[channel] for channel in needed) for case, parts in found.items()}, problems


def description(folder: Path) -> dict[str, Any] | None:
    """The folder's dataset.json, None if it has none.

    Raises:
        FileError: when it is no JSON object.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    content = read_json(path)
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
