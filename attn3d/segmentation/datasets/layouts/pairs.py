"""Images and labels of equal names in two folders, or side by side with an ending such as _label."""

from pathlib import Path

import numpy as np

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import nifti_files, one_each, pair, unread
from attn3d.segmentation.files import FileError, read_segmentation

_FOLDERS = [
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("image", "label"),
    ("images", "masks"),
    ("scans", "labels"),
    ("data", "label"),
]
_ENDINGS = ("_label", "_seg", "_mask")


def find(folder: Path) -> Dataset | None:
    """Reads pairs; their labels are called by the values that occur in them.

    Raises:
        FileError: when the folder has two pairs of folders, or an image two labels.
    """
    there = [parts for parts in _FOLDERS if all((folder / part).is_dir() for part in parts)]
    if len(there) > 1:
        found = " and ".join(f"{images}/ with {labels}/" for images, labels in there)
        raise FileError(folder, f"holds {found}; leave the images and the labels to be learnt from")
    if there:
        folders = [folder / part for part in there[0]]
        scans, references = map(nifti_files, folders)
    else:
        folders = [folder]
        scans, references = _side_by_side(nifti_files(folder))
    if not scans and not references:
        return None
    if not references:
        cases = tuple(Case(name, (path,)) for name, path in scans.items())
        return Dataset(layout="NIfTI images", folder=folder, test_cases=cases, problems=unread(*folders))
    paired, problems = pair(one_each(scans), one_each(references))
    found = {value for case in paired for value in np.unique(read_segmentation(case.label[0]).dataobj).tolist()}
    return Dataset(
        layout="image/label pairs",
        folder=folder,
        cases=paired,
        labels={value: f"label {value}" for value in sorted(found - {0})},
        problems=problems + unread(*folders),
    )


def _side_by_side(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Scans and their labels by the name of the case."""
    references: dict[str, Path] = {}
    for name, path in files.items():
        if (ending := next((ending for ending in _ENDINGS if name.endswith(ending)), None)) is not None:
            case = name.removesuffix(ending)
            if case in references:
                raise FileError(path, f"is a second label of {case!r}, beside {references[case].name}; leave one")
            references[case] = path
    labelled = set(references.values())
    return {name: path for name, path in files.items() if path not in labelled}, references
