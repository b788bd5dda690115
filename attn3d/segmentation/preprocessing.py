"""From a case to what a network sees: the working grid, classes instead of label values, windows as channels."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from monai.data import MetaTensor
from torch import Tensor

from attn3d.segmentation.configuration import Configuration
from attn3d.segmentation.data import normalise, training_subject
from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.files import finished_file
from attn3d.segmentation.grid import to_grid


def prepare(images: Sequence[nib.Nifti1Image], configuration: Configuration) -> MetaTensor:
    """What the network sees of a scan: (C, *S), float32, on the working grid, with its affine.

    Args:
        images: of one case, from `read_case_image`, on one grid.
        configuration: of the run.
    """
    volumes = [to_grid(image, configuration.spacing) for image in images]
    intensities = torch.cat([volume.as_tensor() for volume in volumes])
    return MetaTensor(to_channels(intensities, configuration.windows), affine=volumes[0].affine)


def to_channels(intensities: Tensor, windows: Sequence[Sequence[float]] | None) -> Tensor:
    """A CT in its windows, each from -1 to 1 and clipped; any other scan with mean 0 and standard deviation 1.

    Args:
        intensities: (images, *S).
        windows: level and width in HU of each channel, or None.

    Returns:
        (windows, *S), or (images, *S) where there are none.
    """
    if windows is None:
        return normalise(intensities)
    return torch.cat([((intensities - level) / (width / 2)).clamp(-1, 1) for level, width in windows])


def write_prepared(case: Case, dataset: Dataset, configuration: Configuration, folder: Path) -> None:
    """Writes a case on the working grid, if it is not there: intensities and classes as two NIfTI files.

    Scans smaller than a patch are extended by their edges.
    """
    image_path, label_path = prepared_paths(case, folder)
    if image_path.exists() and label_path.exists():
        return
    images = read_case_image(case)
    label = read_case_label(case, dataset, images[0])
    classes = np.zeros(label.shape, np.uint8)
    for index, value in enumerate(sorted(configuration.labels), 1):
        classes[np.asarray(label.dataobj) == value] = index
    label = nib.Nifti1Image(classes, label.affine)
    subject = training_subject(images, label, configuration.spacing, configuration.patch_size)
    for path, image in ((image_path, subject["image"]), (label_path, subject["label"])):
        with finished_file(path) as unfinished:
            image.save(unfinished)


def prepared_paths(case: Case, folder: Path) -> tuple[Path, Path]:
    """Where `write_prepared` puts the intensities and the classes of a case."""
    return folder / f"{case.name}_image.nii", folder / f"{case.name}_classes.nii"


def prepared_subject(case: Case, folder: Path) -> tio.Subject:
    """A case as `write_prepared` wrote it, read when it is needed."""
    image, label = prepared_paths(case, folder)
    return tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label), name=case.name)
