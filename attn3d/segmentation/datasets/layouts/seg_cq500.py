"""Seg-CQ500: data/volumes/X/CT.nii with ICH_mask.nii.gz, binary."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.listing import nifti_files, pair, unread


def find(folder: Path) -> Dataset | None:
    """Reads the folders of ``data/volumes``."""
    root = folder / "data" / "volumes"
    if not root.is_dir():
        return None
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = {case.name: nifti_files(case) for case in folders}
    images, labels = (
        {name: (files[part],) for name, files in found.items() if part in files} for part in ("CT", "ICH_mask")
    )
    cases, problems = pair(images, labels)
    return Dataset(
        layout="Seg-CQ500",
        folder=folder,
        cases=cases,
        labels={1: "ICH"},
        modality="CT",
        problems=problems + unread(*folders),
    )
