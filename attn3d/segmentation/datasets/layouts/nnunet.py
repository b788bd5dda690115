"""The raw folder of nnU-Net v2: imagesTr/case_0000.nii.gz with a file for each channel, labelsTr/case.nii.gz."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import (
    SUFFIXES,
    channels,
    description,
    files_at,
    modality,
    nifti_files,
    pair,
    unread,
)
from attn3d.segmentation.errors import FileError


def find(folder: Path) -> Dataset | None:
    """Finds the files of the channels and labels in dataset.json."""
    content = description(folder)
    if content is None or "channel_names" not in content:
        return None
    path = folder / "dataset.json"
    ending, names = content.get("file_ending", ".nii.gz"), content["channel_names"]
    if ending not in SUFFIXES:
        raise FileError(path, f"its `file_ending` is {ending!r}; convert the files to .nii.gz")
    if not isinstance(names, dict) or not names:
        raise FileError(path, f"its `channel_names` must name the channels by number, got {names!r}")
    images, problems = channels(nifti_files(folder / "imagesTr"), len(names))
    tests, test_problems = channels(nifti_files(folder / "imagesTs"), len(names))
    cases, unpaired = pair(images, files_at(folder, "labelsTr/*"))
    return Dataset(
        folder=folder,
        cases=cases,
        test_cases=tuple(Case(name, files) for name, files in tests.items()),
        labels=_labels(path, content.get("labels")),
        modality=modality(names.values()),
        simulated="simulated" in content,
        problems=(
            *(f"{file}: {problem}" for file, problem in sorted((problems | test_problems).items())),
            *unpaired,
            *unread(folder, "imagesTr/*", "imagesTs/*", "labelsTr/*"),
        ),
    )


def _labels(path: Path, labels: object) -> dict[int, str]:
    """Label values and names. Regions and ignored voxels are refused."""
    if not isinstance(labels, dict) or "background" not in labels:
        raise FileError(path, f"its `labels` must name the values, with `background` 0, got {labels!r}")
    if any(isinstance(value, list) for value in labels.values()):
        raise FileError(
            path, "its `labels` are regions of several values, which are not supported; give each label one value"
        )
    if "ignore" in labels:
        raise FileError(path, "its `labels` have voxels to `ignore`, which are not supported; label or remove them")
    named = {value: name for name, value in labels.items() if isinstance(value, int) and value != 0}
    if labels["background"] != 0 or len(named) != len(labels) - 1:
        raise FileError(path, f"its `labels` must have a whole number each, `background` 0, got {labels!r}")
    return named
