"""BHSD, the Brain Hemorrhage Segmentation Dataset: label_192/ with imagesTr, labelsTr, imagesTs and labelsTs."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.listing import nifti_files, one_each, pair, unread

LABELS = {1: "EDH", 2: "IPH", 3: "IVH", 4: "SAH", 5: "SDH"}


def find(folder: Path) -> Dataset | None:
    """Reads the pairs of ``label_192``; the scans without labels beside it are not for this."""
    root = folder / "label_192"
    if not root.is_dir():
        return None
    folders = [[root / f"{kind}{part}" for kind in ("images", "labels")] for part in ("Tr", "Ts")]
    (cases, problems), (test_cases, test_problems) = (
        pair(*(one_each(nifti_files(folder)) for folder in both)) for both in folders
    )
    return Dataset(
        layout="BHSD",
        folder=folder,
        cases=cases,
        test_cases=test_cases,
        labels=LABELS,
        modality="CT",
        problems=problems + test_problems + unread(*folders[0], *folders[1]),
    )
