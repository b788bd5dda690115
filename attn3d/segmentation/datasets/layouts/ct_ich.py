"""PhysioNet's ct-ich 1.3.1: ct_scans/049.nii and masks/049.nii, binary, but the values are not 0 and 1."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.listing import nifti_files, one_each, pair, unread


def find(folder: Path) -> Dataset | None:
    """Reads the scans and masks of equal number."""
    folders = [folder / part for part in ("ct_scans", "masks")]
    if not all(part.is_dir() for part in folders):
        return None
    cases, problems = pair(*(one_each(nifti_files(part)) for part in folders))
    return Dataset(
        layout="PhysioNet ct-ich",
        folder=folder,
        cases=cases,
        labels={1: "ICH"},
        modality="CT",
        threshold=0.1,
        problems=problems + unread(*folders),
    )
