"""From a folder to the cases in it."""

from collections import Counter
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset, check_names
from attn3d.segmentation.datasets.layouts import LAYOUTS
from attn3d.segmentation.files import FileError


def find_dataset(path: Path | str, *, labelled: bool = False) -> Dataset:
    """Recognises the layout of a folder and lists its cases; no scan is read.

    Args:
        path: the folder, as published: the one that holds ``dataset.json``, ``label_192``, ``train``, ..
        labelled: whether cases with labels are needed, as to train.

    Raises:
        FileError: when it is no folder or has no case, when a ``dataset.json`` in it cannot be used, when a label
            does not fit into uint8 or has the name of another, or when two cases have one name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileError(folder, "is not a folder; give the folder of a data set")
    found = next((dataset for find in LAYOUTS.values() if (dataset := find(folder)) is not None), None)
    if found is None:
        raise FileError(folder, f"holds no scans in a layout that is known: {', '.join(LAYOUTS)}")
    if not found.cases and (labelled or not found.test_cases):
        example = f", for example {found.problems[0]}" if found.problems else ""
        raise FileError(folder, f"looks like {found.layout} but has no image with its label{example}")
    if unfit := [value for value in found.labels if not 0 < value < 256]:
        raise FileError(folder, f"has the label {unfit[0]}; map its labels to 1 .. 255")
    try:
        check_names(found.labels)
    except ValueError as error:
        raise FileError(folder, str(error)) from error
    for cases in (found.cases, found.test_cases):
        name, times = Counter(case.name for case in cases).most_common(1)[0] if cases else ("", 0)
        if times > 1:
            raise FileError(folder, f"{times} cases are called {name!r}; give each a name of its own")
    return found
