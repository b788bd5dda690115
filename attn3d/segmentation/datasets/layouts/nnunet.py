"""The raw folder of nnU-Net v2: imagesTr/case_0000.nii.gz with a file for each channel, labelsTr/case.nii.gz."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import (
    SUFFIXES,
    channels,
    description,
    files_at,
    modality,
    pair,
    unread,
    volume_files,
)
from attn3d.segmentation.errors import FileError, failing_as
from attn3d.segmentation.labels import Labels


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
    images, problems = channels(volume_files(folder / "imagesTr"), len(names))
    tests, test_problems = channels(volume_files(folder / "imagesTs"), len(names))
    cases, unpaired = pair(images, files_at(folder, "labelsTr/*"))
    return Dataset(
        folder=folder,
        cases=cases,
        test_cases=tuple(Case(name, files) for name, files in tests.items()),
        labels=read_labels(path, content),
        modality=modality(names.values()),
        simulated="simulated" in content,
        problems={str(file): problem for file, problem in sorted(problems.items())}
        | unpaired
        | unread(folder, "imagesTr/*", "imagesTs/*", "labelsTr/*"),
        failed={str(file): problem for file, problem in sorted(test_problems.items())},
    )


def read_labels(path: Path, content: Mapping[str, Any]) -> Labels:
    """The labels, regions and value to ignore of a dataset.json.

    Raises:
        FileError: when they cannot be used.
    """
    given, order = content.get("labels"), content.get("regions_class_order")
    if not isinstance(given, dict) or given.get("background", 0) != 0 or "background" not in given:
        raise FileError(path, f"its `labels` must name the values, with `background` 0, got {given!r}")
    ignore = given.get("ignore")
    if ignore is not None and type(ignore) is not int:
        raise FileError(path, f"its `labels` must give `ignore` one whole number, got {ignore!r}")
    parts = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in given.items()
        if name not in ("background", "ignore")
    }
    if odd := [name for name, values in parts.items() if any(type(value) is not int for value in values)]:
        raise FileError(
            path, f"its `labels` must give {odd[0]!r} a whole number, or a region a list of them, got {given[odd[0]]!r}"
        )
    if all(len(values) == 1 for values in parts.values()):  # as in nnU-Net, the order is ignored without regions
        parts, order = dict(sorted(parts.items(), key=lambda part: part[1])), []
    if not isinstance(order or [], list) or any(type(value) is not int for value in order or []):
        raise FileError(path, f"its `regions_class_order` must be a list of whole numbers, got {order!r}")
    with failing_as(path):
        return Labels(tuple(parts), tuple(parts.values()), tuple(order or ()), ignore)
