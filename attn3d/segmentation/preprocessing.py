"""From a case to what a network sees: the working grid, classes instead of label values, windows as channels."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from monai.data import MetaTensor
from torch import Tensor

from attn3d.segmentation.configuration import Configuration
from attn3d.segmentation.data import normalise, training_subject
from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.files import FileError, finished_file
from attn3d.segmentation.grid import to_grid
from attn3d.segmentation.writing import write_json

logger = logging.getLogger("attn3d")
_HEADER = 352  # bytes of a NIfTI file before its voxels


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
    """Writes a case on the working grid: intensities and classes as two NIfTI files, and a manifest of both.

    What is there is kept if it is what the manifest says, in its size, its digest and the settings that it was made
    with, and is otherwise made anew. Scans smaller than a patch are extended by their edges.

    Raises:
        FileError: when a file of the case cannot be used, or is not written whole.
    """
    paths, manifest = prepared_paths(case, folder), folder / f"{case.name}.json"
    settings = {name: getattr(configuration, name) for name in ("labels", "spacing", "patch_size")}
    made_with = json.loads(json.dumps(settings))
    if manifest.exists():
        if _manifest(manifest) == {"made_with": made_with, **_contents(paths)}:
            return
        logger.warning("%s: is not what its manifest says; the case is prepared anew", paths[0])
    images = read_case_image(case)
    label = read_case_label(case, dataset, images[0])
    classes = np.zeros(label.shape, np.uint8)
    for index, value in enumerate(sorted(configuration.labels), 1):
        classes[np.asarray(label.dataobj) == value] = index
    label = nib.Nifti1Image(classes, label.affine)
    subject = training_subject(images, label, configuration.spacing, configuration.patch_size)
    for path, image in zip(paths, (subject["image"], subject["label"]), strict=True):
        with finished_file(path) as unfinished:
            image.save(unfinished)
            if unfinished.stat().st_size != _HEADER + image.data.nbytes:
                raise FileError(path, "is not written whole; is the disk full?")
    write_json(manifest, {"made_with": made_with, **_contents(paths)})


def prepared_paths(case: Case, folder: Path) -> tuple[Path, Path]:
    """Where `write_prepared` puts the intensities and the classes of a case."""
    return folder / f"{case.name}_image.nii", folder / f"{case.name}_classes.nii"


def _contents(paths: Iterable[Path]) -> dict[str, Any]:
    """Size and digest of files; None for one that is not there."""
    found: dict[str, Any] = {}
    for path in paths:
        found[path.name] = None
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.name] = {"size": path.stat().st_size, "sha256": digest}
    return found


def _manifest(path: Path) -> Any:
    """What a manifest says, None if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def prepared_subject(case: Case, folder: Path) -> tio.Subject:
    """A case as `write_prepared` wrote it, read when it is needed."""
    image, label = prepared_paths(case, folder)
    return tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label), name=case.name)
