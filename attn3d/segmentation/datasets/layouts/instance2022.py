"""INSTANCE 2022: train/data/095.nii.gz and train/label/095.nii.gz, numbered, labelled 0 and 1."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import nifti_files, one_each, pair, unread


def find(folder: Path) -> Dataset | None:
    """Reads the training scans with their labels, and those of the evaluation that have none."""
    root = folder / "train" if (folder / "train").is_dir() else folder
    if not (root / "data").is_dir() or not (root / "label").is_dir():
        return None
    folders = [root / "data", root / "label", folder / "evaluation"]
    scans, labels, tests = map(nifti_files, folders)
    if not all(name.isdecimal() and len(name) == 3 for name in scans):
        return None
    cases, problems = pair(one_each(scans), one_each(labels))
    return Dataset(
        layout="INSTANCE 2022",
        folder=folder,
        cases=cases,
        test_cases=tuple(Case(name, (path,)) for name, path in tests.items()),
        labels={1: "ICH"},
        modality="CT",
        problems=problems + unread(*folders),
    )
