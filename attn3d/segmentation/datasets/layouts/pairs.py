"""Images and labels of equal names in two folders, or side by side with an ending such as _label."""

from pathlib import Path

import numpy as np

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import nifti_files, one_each, pair
from attn3d.segmentation.files import read_segmentation

_FOLDERS = [
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("image", "label"),
    ("images", "masks"),
    ("scans", "labels"),
]
_ENDINGS = ("_label", "_seg", "_mask")


def find(folder: Path) -> Dataset | None:
    """Reads pairs; their labels are called by the values that occur in them."""
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            scans, references = nifti_files(folder / images), nifti_files(folder / labels)
            break
    else:
        files = nifti_files(folder)
        references = {}
        for name, path in files.items():
            if (ending := next((ending for ending in _ENDINGS if name.endswith(ending)), None)) is not None:
                references[name.removesuffix(ending)] = path
        labelled = set(references.values())
        scans = {name: path for name, path in files.items() if path not in labelled}
    if not scans and not references:
        return None
    if not references:
        cases = tuple(Case(name, (path,)) for name, path in scans.items())
        return Dataset(layout="NIfTI images", folder=folder, test_cases=cases)
    paired, problems = pair(one_each(scans), one_each(references))
    found = {value for case in paired for value in np.unique(read_segmentation(case.label[0]).dataobj).tolist()}
    return Dataset(
        layout="image/label pairs",
        folder=folder,
        cases=paired,
        labels={value: f"label {value}" for value in sorted(found - {0})},
        problems=problems,
    )
