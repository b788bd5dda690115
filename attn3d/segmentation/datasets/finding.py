"""From a folder to the cases in it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.layouts import decathlon, dicom, folders, nnunet, pairs
from attn3d.segmentation.errors import FileError

# A layout is a function of a folder that gives a `Dataset`, or None where the folder is another's. The first that
# knows a folder reads it.
LAYOUTS: dict[str, Callable[[Path], Dataset | None]] = {
    "BHSD": folders.bhsd,
    "Decathlon": decathlon.find,
    "nnU-Net v2": nnunet.find,
    "INSTANCE 2022": folders.instance2022,
    "PhysioNet ct-ich": folders.ct_ich,
    "MBH-Seg": folders.mbh_seg,
    "Seg-CQ500": folders.seg_cq500,
    "image/label pairs": pairs.find,
    "DICOM": dicom.find,
}


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
    known = ((layout, dataset) for layout, find in LAYOUTS.items() if (dataset := find(folder)) is not None)
    layout, dataset = next(known, ("", None))
    if dataset is None:
        raise FileError(folder, f"holds no scans in a layout that is known: {', '.join(LAYOUTS)}")
    if not dataset.cases and (labelled or not dataset.test_cases):
        example = f", for example {dataset.problems[0]}" if dataset.problems else ""
        raise FileError(folder, f"looks like {layout} but has no image with its label{example}")
    for cases in (dataset.cases, dataset.test_cases):
        for name, times in Counter(case.name for case in cases).most_common(1):
            if times > 1:
                raise FileError(folder, f"{times} cases are called {name!r}; give each a name of its own")
    return replace(dataset, layout=layout)
