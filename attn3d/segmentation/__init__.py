# ruff: noqa: F401  these imports are for type checkers and documentation; `_NAMES` makes the names public
"""From files to a segmentation and its scores: NIfTI in, patches, training, whole scans, NIfTI out.

The commands ``attn3d simulate``, ``train``, ``predict``, ``evaluate``, ``report``, ``compare`` and ``export`` call the
functions with the same names. A module is imported when one of its names is first used, so that commands start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn3d.segmentation.comparison import compare
    from attn3d.segmentation.datasets import Case, Dataset, find_dataset, split_cases
    from attn3d.segmentation.errors import FileError
    from attn3d.segmentation.evaluation import evaluate, score
    from attn3d.segmentation.exporting import export
    from attn3d.segmentation.folds import CrossValidation, cross_validate
    from attn3d.segmentation.io.files import read_image, read_segmentation, write_image, write_label
    from attn3d.segmentation.io.writing import finished_file
    from attn3d.segmentation.labels import Labels
    from attn3d.segmentation.mni152 import TISSUES, write_mni152
    from attn3d.segmentation.networks import NETWORKS, create_network
    from attn3d.segmentation.portable import normalise
    from attn3d.segmentation.prediction import Prediction, predict
    from attn3d.segmentation.reporting import report
    from attn3d.segmentation.runs import Run, read_labels
    from attn3d.segmentation.settings import Configuration, Settings
    from attn3d.segmentation.simulation import HAEMORRHAGES, simulate, threshold_segmentation
    from attn3d.segmentation.summaries import mean_dice
    from attn3d.segmentation.task import Diverged, SegmentationTask
    from attn3d.segmentation.training import Interrupted, train

_NAMES = {
    "comparison": ["compare"],
    "datasets": ["Case", "Dataset", "find_dataset", "split_cases"],
    "errors": ["FileError"],
    "evaluation": ["evaluate", "score"],
    "exporting": ["export"],
    "folds": ["CrossValidation", "cross_validate"],
    "io.files": ["read_image", "read_segmentation", "write_image", "write_label"],
    "io.writing": ["finished_file"],
    "labels": ["Labels"],
    "mni152": ["TISSUES", "write_mni152"],
    "networks": ["NETWORKS", "create_network"],
    "prediction": ["Prediction", "predict"],
    "portable": ["normalise"],
    "reporting": ["report"],
    "runs": ["Run", "read_labels"],
    "settings": ["Configuration", "Settings"],
    "simulation": ["HAEMORRHAGES", "simulate", "threshold_segmentation"],
    "summaries": ["mean_dice"],
    "task": ["Diverged", "SegmentationTask"],
    "training": ["Interrupted", "train"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """All names of the module, imported or not."""
    return sorted({*globals(), *__all__})
