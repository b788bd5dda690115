"""nnU-Net v2's raw folder: imagesTr/case_0000.nii.gz with a file for each channel, labelsTr/case.nii.gz."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import SUFFIXES, Files, description, modality, one_each, pair
from attn3d.segmentation.files import FileError


def find(folder: Path) -> Dataset | None:
    """Reads the channels and labels that the dataset.json names, in files of its ending."""
    content = description(folder)
    if content is None or "channel_names" not in content:
        return None
    path = folder / "dataset.json"
    ending, channels = content.get("file_ending", ".nii.gz"), content["channel_names"]
    if ending not in SUFFIXES:
        raise FileError(path, f"its `file_ending` is {ending!r}; convert the files to .nii.gz")
    if not isinstance(channels, dict) or not channels:
        raise FileError(path, f"its `channel_names` must name the channels by number, got {channels!r}")
    images, problems = _channels(folder / "imagesTr", ending, len(channels))
    tests, test_problems = _channels(folder / "imagesTs", ending, len(channels))
    cases, unpaired = pair(images, one_each(_files(folder / "labelsTr", ending)))
    return Dataset(
        layout="nnU-Net v2",
        folder=folder,
        cases=cases,
        test_cases=tuple(Case(name, files) for name, files in tests.items()),
        labels=_labels(path, content.get("labels")),
        modality=modality(channels.values()),
        simulated="simulated" in content,
        problems=problems + unpaired + test_problems,
    )


def _labels(path: Path, labels: object) -> dict[int, str]:
    """Values and names; regions and voxels to ignore are refused."""
    if not isinstance(labels, dict) or "background" not in labels:
        raise FileError(path, f"its `labels` must name the values, with `background` 0, got {labels!r}")
    if any(isinstance(value, list) for value in labels.values()):
        raise FileError(path, "its `labels` are regions of several values, which overlap; give each label one value")
    if "ignore" in labels:
        raise FileError(path, "its `labels` have voxels to `ignore`, which is not read; label or remove them")
    named = {value: name for name, value in labels.items() if isinstance(value, int) and value != 0}
    if labels["background"] != 0 or len(named) != len(labels) - 1:
        raise FileError(path, f"its `labels` must have a whole number each, `background` 0, got {labels!r}")
    return named


def _files(folder: Path, ending: str) -> dict[str, Path]:
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"[!.]*{ending}"))}


def _channels(folder: Path, ending: str, channels: int) -> tuple[Files, tuple[str, ...]]:
    """The files of each case in the order of the channels, and what is amiss."""
    files = _files(folder, ending)
    names = sorted({name.rpartition("_")[0] for name in files})
    wanted = {name: [f"{name}_{channel:04d}" for channel in range(channels)] for name in names}
    problems = [
        f"{folder / (file + ending)}: is not there, a case has {channels} channels"
        for parts in wanted.values()
        for file in parts
        if file not in files
    ]
    known = {file for parts in wanted.values() for file in parts}
    problems += [f"{files[name]}: is no channel from _0000 to _{channels - 1:04d}" for name in files.keys() - known]
    whole = {name: parts for name, parts in wanted.items() if all(file in files for file in parts)}
    return {name: tuple(files[file] for file in parts) for name, parts in whole.items()}, tuple(sorted(problems))
