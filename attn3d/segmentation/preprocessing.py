"""From a case to what a network sees: the working grid, classes instead of label values, windows as channels."""

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
from torch import Tensor

from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.grid import label_to_grid, to_grid
from attn3d.segmentation.settings import Configuration
from attn3d.segmentation.writing import finished_file, read_json, write_json

logger = logging.getLogger("attn3d")
_PERCENTILES = (0.5, 99.5)  # a hot voxel, however bright, must not set the scale
_SAMPLE = 2**20  # voxels that percentiles are taken of at most
_FURTHEST = 10.0  # deviations from the mean


def normalise(intensities: Tensor) -> Tensor:
    """Every channel with mean 0 and standard deviation 1, and none of its voxels beyond 10.

    Both are those of the voxels brighter than the channel's mean, as air must not set the scale, after what lies
    beyond the percentiles 0.5 and 99.5 is set to them. Where these are all the same, as in an image of two values,
    those of all voxels are taken; where all voxels are the same, they become 0.

    Args:
        intensities: (channels, *S), finite.
    """
    return torch.stack([_normalised(channel.float()) for channel in intensities])


def _normalised(values: Tensor) -> Tensor:
    some = values.flatten()[:: 1 + values.numel() // _SAMPLE].numpy()
    clipped = values.clamp(*np.percentile(some, _PERCENTILES, method="nearest").tolist())
    for chosen in (clipped[clipped > clipped.mean(dtype=torch.float64)], clipped, values):
        if chosen.numel() and chosen.min() < chosen.max():
            deviation, mean = torch.std_mean(chosen.double())
            return ((values - mean.item()) / deviation.item()).clamp_(-_FURTHEST, _FURTHEST)
    return torch.zeros_like(values)


def intensities_of(images: Sequence[nib.Nifti1Image], configuration: Configuration) -> MetaTensor:
    """What `to_channels` makes the network's input of: (images, *S), float32, on the working grid, with its affine.

    Args:
        images: of one case, from `read_case_image`, on one grid.
        configuration: of the run.
    """
    volumes = [to_grid(image, configuration.spacing) for image in images]
    intensities = volumes[0].as_tensor() if len(volumes) == 1 else torch.cat([one.as_tensor() for one in volumes])
    if configuration.windows is None:
        intensities = normalise(intensities)
    return MetaTensor(intensities, affine=volumes[0].affine)


def to_channels(intensities: Tensor, windows: Sequence[Sequence[float]] | None) -> Tensor:
    """A CT in its windows, each from -1 to 1 and clipped; any other scan, which `normalise` has been given, as it is.

    Args:
        intensities: (images, *S) or (B, images, *S).
        windows: level and width in HU of each channel, or None.

    Returns:
        (windows, *S) or (B, windows, *S), or as it is where there are none.
    """
    if windows is None:
        return intensities
    return torch.cat([((intensities - level) / (width / 2)).clamp(-1, 1) for level, width in windows], dim=-4)


class PreparedCase:
    """A case on the working grid, in a file of which only what is asked for is read.

    The file holds ``image`` (C, *S), float32: Hounsfield units where there are windows, normalised otherwise;
    ``classes`` (*S), uint8; and for each class that the case has ``foreground <class>``, the flat indices of its
    voxels.

    Args:
        case: that it was made of.
        folder: where `write` put it.
    """

    def __init__(self, case: Case, folder: Path):
        self.name, self._case = case.name, case
        self.path, self.manifest = folder / f"{case.name}.safetensors", folder / f"{case.name}.json"

    def write(self, dataset: Dataset, configuration: Configuration) -> None:
        """Makes the file, and a manifest of it.

        What is there is kept if it is what the manifest says, in its size, its digest and the settings that it was made
        with, and is otherwise made anew.

        Raises:
            FileError: when a file of the case cannot be used, or is not written whole.
        """
        made_with = {
            "labels": {str(value): name for value, name in configuration.labels.items()},
            "spacing": [*configuration.spacing],
            "normalised": configuration.windows is None,
        }
        if self.manifest.exists():
            with suppress(FileError):
                if read_json(self.manifest) == {"made_with": made_with, **self._contents()}:
                    return
            logger.warning("%s: is not what its manifest says; the case is prepared anew", self.path)
        content = save(_tensors(self._case, dataset, configuration))
        with finished_file(self.path) as unfinished:
            unfinished.write_bytes(content)
            if unfinished.stat().st_size != len(content):
                raise FileError(self.path, "is not written whole; is the disk full?")
        write_json(self.manifest, {"made_with": made_with, **self._contents()})

    def _contents(self) -> dict[str, Any]:
        """Size and digest of the file, None if it is not there."""
        if not self.path.is_file():
            return {self.path.name: None}
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {self.path.name: {"size": self.path.stat().st_size, "sha256": digest}}

    def open(self) -> Any:
        """The file, mapped into memory."""
        return safe_open(self.path, "np")


def _tensors(case: Case, dataset: Dataset, configuration: Configuration) -> dict[str, np.ndarray]:
    """What the file of a prepared case holds."""
    images = read_case_image(case)
    label = read_case_label(case, dataset, images[0])
    classes = np.zeros(label.shape, np.uint8)
    for index, value in enumerate(sorted(configuration.labels), 1):
        classes[np.asarray(label.dataobj) == value] = index
    classes = label_to_grid(nib.Nifti1Image(classes, label.affine), configuration.spacing)[0].numpy()
    intensities = intensities_of(images, configuration).as_tensor()
    tensors = {"image": intensities.numpy(), "classes": classes}
    for value in np.unique(classes[classes > 0]).tolist():
        tensors[f"foreground {value}"] = np.flatnonzero(classes == value).astype(np.int32)
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}
