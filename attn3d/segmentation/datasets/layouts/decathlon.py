"""The Medical Segmentation Decathlon: a dataset.json that lists each pair."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import description, modality, nifti_files, stem, unread
from attn3d.segmentation.errors import FileError, failing_as
from attn3d.segmentation.labels import Labels

_PARTS = ("imagesTr", "labelsTr", "imagesTs")


def find(folder: Path) -> Dataset | None:
    """Reads what the dataset.json lists; names what it lists that is not there, and what is there unlisted."""
    content = description(folder)
    if content is None or "training" not in content:
        return None
    path = folder / "dataset.json"
    try:
        modalities = list(content["modality"].values())
        names = {int(value): str(name) for value, name in content["labels"].items() if int(value) != 0}
        given = [(folder / entry["image"], folder / entry["label"]) for entry in content.get("validation", [])]
        pairs = [(folder / entry["image"], folder / entry["label"]) for entry in content["training"]] + given
        tests = [folder / (entry["image"] if isinstance(entry, dict) else entry) for entry in content.get("test", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            path,
            f"is not of the Decathlon's form ({error!r}): `modality` and `labels` by number, "
            "`training` and `validation` lists",
        ) from error
    with failing_as(path):
        labels = Labels.of(names)
    if len(modalities) != 1:
        raise FileError(
            path, f"its files hold {len(modalities)} modalities each; write one file a modality, as nnU-Net v2 has them"
        )
    listed = [*(file for files in pairs for file in files), *tests]
    problems = [f"{file}: is in dataset.json but not there" for file in listed if not file.is_file()]
    known = {file.resolve() for file in listed}
    for part in _PARTS:
        there = nifti_files(folder / part).values()
        problems += [f"{file}: is not in dataset.json" for file in there if file.resolve() not in known]
    whole = [Case(stem(image), (image,), (label,)) for image, label in pairs if image.is_file() and label.is_file()]
    held_out = {stem(image) for image, _ in given}
    return Dataset(
        folder=folder,
        cases=tuple(whole),
        test_cases=tuple(Case(stem(image), (image,)) for image in tests if image.is_file()),
        labels=labels,
        modality=modality(modalities),
        validation=tuple(case.name for case in whole if case.name in held_out),
        problems=(*problems, *unread(folder, *(f"{part}/*" for part in _PARTS))),
    )
