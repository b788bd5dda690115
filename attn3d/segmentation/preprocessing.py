"""Prepares a case for training: resampled to the working grid, with classes instead of label values."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.grid import label_to_grid
from attn3d.segmentation.io.writing import finished_file
from attn3d.segmentation.portable import on_grid
from attn3d.segmentation.settings import Configuration

logger = logging.getLogger("attn3d")


class PreparedCase:
    """A case on the working grid, in a file that can be read in parts.

    The file has ``image`` (C, *S), float32, in Hounsfield units if there are windows and normalised otherwise;
    ``label`` (*S), uint8; for each label of the case ``foreground <name>``, the flat indices of its voxels; and if
    some voxels are ignored ``annotated``, the indices of all others. Its metadata say from what it was made.
    """

    def __init__(self, case: Case, folder: Path):
        self.name, self._case = case.name, case
        self.path = folder / f"{case.name}.safetensors"

    def write(self, dataset: Dataset, configuration: Configuration, *, same: bool = False) -> None:
        """Writes the file. A complete file that was made from the same files with the same settings is kept.

        Args:
            dataset: the data set of the case.
            configuration: the configuration of the run.
            same: whether voxels and labels must equal those of an existing file, as after the data set was moved.

        Raises:
            FileError: when a file of the case cannot be used, or the case is not the ``same``.
        """
        before: dict[str, np.ndarray] = {}
        made_with = {
            "files": _sizes_and_times([*self._case.images, *self._case.label]),
            "threshold": dataset.threshold,
            "labels": configuration.as_dict()["labels"],
            "spacing": [*configuration.spacing],
            "normalised": configuration.windows is None,
        }
        metadata = {"made_with": json.dumps(made_with)}
        if self.path.exists():
            with suppress(OSError, SafetensorError), self.open() as file:
                if file.metadata() == metadata:
                    return
                if same:
                    before = {name: file.get_tensor(name) for name in ("image", "label")}
            if not before:
                logger.warning(
                    "%s: is incomplete, or made from other files or with other settings; the case is prepared again",
                    self.path,
                )
        tensors = _tensors(self._case, dataset, configuration)
        for name, values in before.items():  # almost equal, since the number of threads changes the rounding
            if values.shape != tensors[name].shape or not np.allclose(values, tensors[name], rtol=1e-3, atol=1e-3):
                raise FileError(self._case.images[0], f"its {name} is not that of {self.name!r} in the training so far")
        with finished_file(self.path) as unfinished:
            unfinished.write_bytes(save(tensors, metadata))

    def open(self) -> Any:
        """Opens the file, mapped into memory."""
        return safe_open(self.path, "np")


def _sizes_and_times(paths: Sequence[Path]) -> list[list[int]]:
    """Size and time of the last change of each file."""
    return [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _tensors(case: Case, dataset: Dataset, configuration: Configuration) -> dict[str, np.ndarray]:
    """The content of the file of a prepared case."""
    images = read_case_image(case)
    labels = configuration.labels
    label = label_to_grid(read_case_label(case, dataset, images[0]), configuration.spacing)[0].numpy()
    intensities = on_grid(images, configuration.spacing, configuration.windows).as_tensor()
    tensors = {"image": intensities.numpy(), "label": label}
    for name, mask in labels.masks(label):
        if mask.any():
            tensors[f"foreground {name}"] = np.flatnonzero(mask).astype(np.int32)
    ignored = label == labels.ignore
    if ignored.any() and not ignored.all():
        tensors["annotated"] = np.flatnonzero(~ignored).astype(np.int32)
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}
