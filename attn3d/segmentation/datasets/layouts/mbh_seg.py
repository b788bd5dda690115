"""MBH-Seg: a folder for each case with image.nii.gz and label_annot_N.nii.gz of each rater N."""

from pathlib import Path

from attn3d.segmentation.datasets.dataset import Dataset
from attn3d.segmentation.datasets.layouts.bhsd import LABELS
from attn3d.segmentation.datasets.listing import Files, nifti_files, pair, unread


def find(folder: Path) -> Dataset | None:
    """Reads each case with all of its raters."""
    images: Files = {}
    labels: Files = {}
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    for case in folders:
        files = nifti_files(case)
        if "image" in files:
            images[case.name] = (files["image"],)
        if raters := tuple(path for name, path in files.items() if name.startswith("label_annot_")):
            labels[case.name] = raters
    if not labels:
        return None
    cases, problems = pair(images, labels)
    return Dataset(
        layout="MBH-Seg", folder=folder, cases=cases, labels=LABELS, modality="CT", problems=problems + unread(*folders)
    )
