"""Prepares a case for training: resampled to the working grid, with classes instead of label values."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from safetensors import safe_open
from safetensors.numpy import save

from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.grid import label_to_grid, to_grid
from attn3d.segmentation.io.writing import finished_file, read_json, write_json
from attn3d.segmentation.portable import normalise
from attn3d.segmentation.settings import Configuration

logger = logging.getLogger("attn3d")


def intensities_of(images: Sequence[nib.Nifti1Image], configuration: Configuration) -> MetaTensor:
    """The input of `to_channels`: (images, *S), float32, on the working grid, with its affine.

    Args:
        images: the images of a case, from `read_case_image`.
        configuration: the configuration of the run.
    """
    volumes = [to_grid(image, configuration.spacing) for image in images]
    intensities = volumes[0].as_tensor() if len(volumes) == 1 else torch.cat([one.as_tensor() for one in volumes])
    if configuration.windows is None:
        intensities = normalise(intensities)
    return MetaTensor(intensities, affine=volumes[0].affine)


class PreparedCase:
    """A case on the working grid, in a file that can be read in parts.

    The file has ``image`` (C, *S), float32, in Hounsfield units if there are windows and normalised otherwise;
    ``label`` (*S), uint8; for each label of the case ``foreground <name>``, the flat indices of its voxels; and if
    some voxels are ignored ``annotated``, the indices of all others.

    Args:
        case: the case.
        folder: the folder of the file.
    """

    def __init__(self, case: Case, folder: Path):
        self.name, self._case = case.name, case
        self.path, self.manifest = folder / f"{case.name}.safetensors", folder / f"{case.name}.json"

    def write(self, dataset: Dataset, configuration: Configuration) -> None:
        """Writes the file and its manifest.

        An existing file is kept if its size, its digest, its settings and the files of the case are those in the
        manifest. Otherwise it is written again.

        Raises:
            FileError: when a file of the case cannot be used, or the prepared file is incomplete.
        """
        made_with = {
            "files": _sizes_and_times([*self._case.images, *self._case.label]),
            "threshold": dataset.threshold,
            "labels": configuration.as_dict()["labels"],
            "spacing": [*configuration.spacing],
            "normalised": configuration.windows is None,
        }
        if self.manifest.exists():
            with suppress(FileError):
                if read_json(self.manifest) == {"made_with": made_with, **self._contents()}:
                    return
            logger.warning("%s: differs from its manifest; the case is prepared again", self.path)
        content = save(_tensors(self._case, dataset, configuration))
        with finished_file(self.path) as unfinished:
            unfinished.write_bytes(content)
            if unfinished.stat().st_size != len(content):
                raise FileError(self.path, "was not written completely; is the disk full?")
        write_json(self.manifest, {"made_with": made_with, **self._contents()})

    def _contents(self) -> dict[str, Any]:
        """Size and digest of the file, or None if it does not exist."""
        if not self.path.is_file():
            return {self.path.name: None}
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {self.path.name: {"size": self.path.stat().st_size, "sha256": digest}}

    def open(self) -> Any:
        """Opens the file, mapped into memory."""
        return safe_open(self.path, "np")


def _sizes_and_times(paths: Sequence[Path]) -> list[list[int]]:
    """Size and time of the last change of each file; of all files in a folder, for a DICOM series."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _tensors(case: Case, dataset: Dataset, configuration: Configuration) -> dict[str, np.ndarray]:
    """The content of the file of a prepared case."""
    images = read_case_image(case)
    labels = configuration.labels
    label = label_to_grid(read_case_label(case, dataset, images[0]), configuration.spacing)[0].numpy()
    intensities = intensities_of(images, configuration).as_tensor()
    tensors = {"image": intensities.numpy(), "label": label}
    for name, mask in labels.masks(label):
        if mask.any():
            tensors[f"foreground {name}"] = np.flatnonzero(mask).astype(np.int32)
    ignored = label == labels.ignore
    if ignored.any() and not ignored.all():
        tensors["annotated"] = np.flatnonzero(~ignored).astype(np.int32)
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}
