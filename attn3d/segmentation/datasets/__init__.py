"""Data sets in their published layouts: how they are found, listed, read and split."""

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.finding import LAYOUTS, find_dataset
from attn3d.segmentation.datasets.reading import read_case_image, read_case_label
from attn3d.segmentation.datasets.scans import find_scans
from attn3d.segmentation.datasets.splitting import Split, named_splits, read_fold, read_splits, split_cases

__all__ = [
    "LAYOUTS",
    "Case",
    "Dataset",
    "Split",
    "find_dataset",
    "find_scans",
    "named_splits",
    "read_case_image",
    "read_case_label",
    "read_fold",
    "read_splits",
    "split_cases",
]
