"""Finds the data set in a folder."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.layouts import decathlon, dicom, folders, nnunet, pairs
from attn3d.segmentation.errors import FileError

# A layout is a function that takes a folder and returns a `Dataset`, or None if the folder has another layout.
# The first layout that returns a `Dataset` is used.
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
    """Recognizes the layout of a folder and lists its cases.

    Scans are not read. The labels of image/label pairs are, since their values name them.

    Args:
        path: the folder as it was published: the one that contains ``dataset.json``, ``label_192``, ``train``, ..
        labelled: whether cases with labels are required, as for training.

    Raises:
        FileError: when the path is not a folder, has no cases, or has a ``dataset.json`` that cannot be used; when a
            label is outside of uint8, or all are empty though they are required; or when two labels or two cases have
            the same name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileError(folder, "is not a folder; give the folder of a data set")
    known = ((layout, dataset) for layout, find in LAYOUTS.items() if (dataset := find(folder)) is not None)
    layout, dataset = next(known, ("", None))
    if dataset is None:
        raise FileError(folder, f"has no NIfTI, NRRD, MHA or DICOM scans in a known layout: {', '.join(LAYOUTS)}")
    if not dataset.cases and (labelled or not dataset.test_cases):
        example = f", for example {dataset.left_out[0]}" if dataset.left_out else ""
        raise FileError(folder, f"has the layout {layout}, but no image with a label{example}")
    if labelled and LAYOUTS[layout] is pairs.find and not dataset.labels.names:
        raise FileError(folder, f"all voxels of its {len(dataset.cases)} labels are 0; check the labels")
    for cases in (dataset.cases, dataset.test_cases):
        for name, times in Counter(case.name for case in cases).most_common(1):
            if times > 1:
                raise FileError(folder, f"has {times} cases with the name {name!r}; give each case its own name")
    return replace(dataset, layout=layout)
