"""From files to a segmentation and its scores: NIfTI in, patches, training, whole scans, NIfTI out.

The commands ``attn3d simulate``, ``train``, ``predict``, ``evaluate``, ``report`` and ``compare`` are the functions
of these names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attn3d.segmentation.datasets import Case, Dataset, find_dataset, split_cases
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.evaluation import evaluate, mean_dice, score
from attn3d.segmentation.files import (
    read_image,
    read_label,
    read_segmentation,
    write_image,
    write_label,
)
from attn3d.segmentation.networks import NETWORKS, create_network
from attn3d.segmentation.prediction import Prediction, predict
from attn3d.segmentation.preprocessing import normalise
from attn3d.segmentation.runs import Run
from attn3d.segmentation.settings import Configuration, Settings
from attn3d.segmentation.writing import finished_file

if TYPE_CHECKING:
    from attn3d.segmentation.comparison import compare
    from attn3d.segmentation.folds import CrossValidation, cross_validate
    from attn3d.segmentation.mni152 import TISSUES, write_mni152
    from attn3d.segmentation.reporting import report
    from attn3d.segmentation.simulation import HAEMORRHAGES, simulate, threshold_segmentation
    from attn3d.segmentation.task import Diverged, SegmentationTask
    from attn3d.segmentation.training import Interrupted, train

# What needs Lightning, torchio, Matplotlib, nilearn or scikit-learn is imported when it is asked for.
_WHEN_ASKED = {
    "CrossValidation": "folds",
    "HAEMORRHAGES": "simulation",
    "TISSUES": "mni152",
    "Diverged": "task",
    "Interrupted": "training",
    "SegmentationTask": "task",
    "compare": "comparison",
    "cross_validate": "folds",
    "report": "reporting",
    "simulate": "simulation",
    "threshold_segmentation": "simulation",
    "train": "training",
    "write_mni152": "mni152",
}

__all__ = [
    "HAEMORRHAGES",
    "NETWORKS",
    "TISSUES",
    "Case",
    "Configuration",
    "CrossValidation",
    "Dataset",
    "Diverged",
    "FileError",
    "Interrupted",
    "Prediction",
    "Run",
    "SegmentationTask",
    "Settings",
    "compare",
    "create_network",
    "cross_validate",
    "evaluate",
    "find_dataset",
    "finished_file",
    "mean_dice",
    "normalise",
    "predict",
    "read_image",
    "read_label",
    "read_segmentation",
    "report",
    "score",
    "simulate",
    "split_cases",
    "threshold_segmentation",
    "train",
    "write_image",
    "write_label",
    "write_mni152",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for by a name of `_WHEN_ASKED`."""
    if name not in _WHEN_ASKED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_WHEN_ASKED[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    """All that there is, imported or not."""
    return sorted({*globals(), *__all__})
