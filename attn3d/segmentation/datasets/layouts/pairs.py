"""Images and labels with the same names in two folders, or in one folder with an ending such as _label."""

from pathlib import Path

import numpy as np

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import Files, files_at, image_of, pair, unread
from attn3d.segmentation.errors import FileError, failure_noted, failure_of
from attn3d.segmentation.io.files import read_segmentation, values_in
from attn3d.segmentation.labels import Labels

_FOLDERS = [
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("image", "label"),
    ("images", "masks"),
    ("scans", "labels"),
    ("data", "label"),
]


def find(folder: Path) -> Dataset | None:
    """Finds pairs. Their labels are named by the values in the files. Images without a label are test cases.

    Raises:
        FileError: when the folder has two pairs of folders, an image has two labels, or labels cannot be read.
    """
    there = [parts for parts in _FOLDERS if all((folder / part).is_dir() for part in parts)]
    if len(there) > 1:
        found = " and ".join(f"{images}/ with {labels}/" for images, labels in there)
        raise FileError(folder, f"has {found}; keep only the images and labels for training")
    places = [f"{part}/*" for part in there[0]] if there else ["*"]
    files = [files_at(folder, place) for place in places]
    images, labels = files if there else _side_by_side(*files)
    if not images and not labels:
        return None
    others = files_at(folder, "imagesTs/*")
    twice = sorted(images.keys() & others)
    problems = unread(folder, *places, "imagesTs/*")
    problems |= {str(others.pop(name)[0]): "has the name of another scan" for name in twice}
    tests = tuple(Case(name, one) for name, one in (images | others).items() if name not in labels)
    if not labels:
        return Dataset(folder, test_cases=tests, problems=problems)
    cases, unpaired = pair(images, labels)
    for name in (labels.keys() - images.keys()) & {name.removesuffix("_0000") for name in images}:
        unpaired[str(images[f"{name}_0000"][0])] = (
            f"has no label, and {labels[name][0].name} has no image: these are the names of nnU-Net. If a case has one "
            "image, remove _0000 from its name; if it has several, name the folders imagesTr and labelsTr, and add a "
            "dataset.json with `channel_names`, `labels` and `file_ending`"
        )
    values: set[int] = set()
    failed: dict[str, str] = {}
    for case in cases:
        with failure_noted(case.label[0], failed):
            values.update(values_in(np.asarray(read_segmentation(case.label[0]).dataobj)).tolist())
    if failed:
        raise failure_of(folder, failed)
    return Dataset(
        folder=folder,
        cases=cases,
        test_cases=tests,
        labels=Labels.of({value: f"label {value}" for value in values - {0}}),
        problems=unpaired | problems,
    )


def _side_by_side(files: Files) -> tuple[Files, Files]:
    """Images and labels by the name of the case."""
    images, labels = dict(files), Files()
    for name, (path,) in files.items():
        if (case := image_of(name)) is not None:
            if case in labels:
                raise FileError(path, f"is a second label of {case!r}, in addition to {labels[case][0].name}; keep one")
            labels[case] = images.pop(name)
    return images, labels
