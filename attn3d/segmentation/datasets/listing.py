"""What the layouts share: names of files, pairs, channels, and descriptions in JSON."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.files import FileError

SUFFIXES = (".nii.gz", ".nii")
_OTHER_FORMATS = (
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".hdr",
    ".img",
    ".mgz",
    ".mgh",
    ".dcm",
    ".npy",
    ".npz",
    ".gz",
    ".zip",
)
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)

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


def unread(*folders: Path) -> tuple[str, ...]:
    """A line for each volume right in the folders that is in another format than NIfTI."""
    return tuple(
        f"{path}: is no NIfTI file; convert it to .nii.gz"
        for folder in folders
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
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
    problems: dict[Path, str] = {}
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, path in files.items():
        if match := _CHANNEL.fullmatch(name):
            found[match[1]][name] = path
        else:
            problems[path] = f"is no channel from _0000 to _{number - 1:04d}, as {name}_0000 would be"
    whole: Files = {}
    for case, parts in found.items():
        wanted = [f"{case}_{channel:04d}" for channel in range(number)]
        missing = [name for name in wanted if name not in parts]
        for name in parts.keys() - set(wanted):
            problems[parts[name]] = f"is no channel from _0000 to _{number - 1:04d}; a case has {number} channels"
        if missing:
            lack = f"its case has no {' and no '.join(missing)}; a case has {number} channels"
            problems |= {path: lack for name, path in parts.items() if name in wanted}
        elif len(parts) > number:
            problems |= {parts[name]: f"its case has {len(parts)} channels, needed are {number}" for name in wanted}
        else:
            whole[case] = tuple(parts[name] for name in wanted)
    return whole, problems


def description(folder: Path) -> dict | None:
    """The folder's dataset.json, None if it has none.

    Raises:
        FileError: when it is no JSON object.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError) as error:
        raise FileError(path, f"is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileError(path, f"a JSON object is needed, got {type(content).__name__}")
    return content


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a key that is there twice, JSON would silently take the last."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def modality(names: Iterable[object]) -> str:
    """ "CT" or "MRI" when the channels' names say so, else "unknown"."""
    words = [str(name).upper() for name in names]
    if words and all(word.startswith("CT") for word in words):
        return "CT"
    mri = ("MR", "T1", "T2", "FLAIR", "DWI", "ADC", "PD")
    return "MRI" if words and all(word.startswith(mri) for word in words) else "unknown"
