"""Folders of DICOM, a series each: images to predict, without labels."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.files import is_dicom


def find(folder: Path) -> Dataset | None:
    """Reads the folder as a series, or else each folder right below it that is one."""
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    series = [path for path in folders if any(map(is_dicom, path.iterdir()))]
    if not series:
        return None
    return Dataset(
        layout="DICOM", folder=folder, test_cases=tuple(Case(path.resolve().name, (path,)) for path in series)
    )
