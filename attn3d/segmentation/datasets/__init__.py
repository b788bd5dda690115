"""Data sets as they are published: found in a folder, listed, read, split."""

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.finding import find_dataset
from attn3d.segmentation.datasets.layouts import LAYOUTS
from attn3d.segmentation.datasets.reading import read_case_image, read_case_label
from attn3d.segmentation.datasets.splitting import read_fold, split_cases

__all__ = [
    "LAYOUTS",
    "Case",
    "Dataset",
    "find_dataset",
    "read_case_image",
    "read_case_label",
    "read_fold",
    "split_cases",
]
