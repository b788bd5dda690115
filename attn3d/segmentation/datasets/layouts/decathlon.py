"""The Medical Segmentation Decathlon: a dataset.json that lists each pair; several modalities are one 4-D file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import description, modality, stem, unread, volume_files
from attn3d.segmentation.errors import FileError, failing_as
from attn3d.segmentation.labels import Labels

_PARTS = ("imagesTr", "labelsTr", "imagesTs")


def find(folder: Path) -> Dataset | None:
    """Reads the cases in dataset.json. Listed files that do not exist, and files that are not listed, are problems."""
    content = description(folder)
    if content is None or not is_decathlon(content):
        return None
    path = folder / "dataset.json"
    try:
        modalities = list(content["modality"].values())
        given = [(folder / entry["image"], folder / entry["label"]) for entry in content.get("validation", [])]
        pairs = [(folder / entry["image"], folder / entry["label"]) for entry in content["training"]] + given
        tests = [folder / (entry["image"] if isinstance(entry, dict) else entry) for entry in content.get("test", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            path,
            f"does not have the form of the Decathlon ({error!r}): `modality` by number, `training` and "
            "`validation` as lists",
        ) from error
    labels = read_labels(path, content)
    volumes = len(modalities)
    if not volumes:
        raise FileError(path, "its `modality` is empty; name the modalities in each file by number")
    listed = [*(file for files in pairs for file in files), *tests]
    missing = [file for file in listed if not file.is_file()]
    problems = {str(file): _absent(file) for file in missing if file not in tests}
    known = {file.resolve() for file in listed}
    for part in _PARTS:
        found = volume_files(folder / part).values()
        problems |= {str(file): "is not in dataset.json" for file in found if file.resolve() not in known}
    there = [pair for pair in pairs if all(file.is_file() for file in pair)]
    whole = [Case(stem(image), (image,), (label,), volumes) for image, label in there]
    held_out = {stem(image) for image, _ in given}
    return Dataset(
        folder=folder,
        cases=tuple(whole),
        test_cases=tuple(Case(stem(image), (image,), volumes=volumes) for image in tests if image.is_file()),
        labels=labels,
        modality=modality(modalities),
        validation=tuple(case.name for case in whole if case.name in held_out),
        problems=problems | unread(folder, *(f"{part}/*" for part in _PARTS)),
        failed={str(file): _absent(file) for file in missing if file in tests},
    )


def is_decathlon(content: Mapping[str, Any]) -> bool:
    """Whether a dataset.json lists its cases. nnU-Net v2, whose file has ``channel_names``, ignores such lists."""
    return "training" in content and "channel_names" not in content


def _absent(file: Path) -> str:
    """The problem of a listed file that does not exist."""
    name, problem = stem(file), "is in dataset.json, but does not exist"
    if not file.with_name(f"{name}_0000{file.name.removeprefix(name)}").is_file():
        return problem
    return f"{problem}; {name}_0000 does, as in nnU-Net v1: convert it with nnUNetv2_convert_old_nnUNet_dataset"


def read_labels(path: Path, content: Mapping[str, Any]) -> Labels:
    """The labels of a dataset.json.

    Raises:
        FileError: when they cannot be used.
    """
    given = content.get("labels")
    try:
        names = {int(value): str(name) for value, name in given.items() if int(value) != 0}  # type: ignore[union-attr]
    except (AttributeError, ValueError) as error:
        raise FileError(path, f"its `labels` must give the name of each value, got {given!r}") from error
    with failing_as(path):
        return Labels.of(names)
