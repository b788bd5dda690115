"""Reads the images and the label of a case."""

import nibabel as nib
import numpy as np

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.files import on_grid_of, read_image, read_images, read_segmentation


def read_case_image(case: Case) -> list[nib.Nifti1Image]:
    """Reads the images of a case as float32.

    Raises:
        FileError: as `read_image`; when an image is on another grid than the first one, or a file that must contain all
            channels has another number of volumes.
    """
    if case.volumes > 1:
        return read_images(case.images[0], case.volumes)
    first, *others = (read_image(path) for path in case.images)
    files = zip(case.images[1:], others, strict=True)
    return [first, *(on_grid_of(path, image, first, str(case.images[0])) for path, image in files)]


def read_case_label(case: Case, dataset: Dataset, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reads the label of a case as uint8 on the grid of its scan. It may be empty.

    With several raters, each voxel gets the value with the most votes, and the smallest value in a tie, so that the
    background wins over a label.

    Raises:
        FileError: as `read_segmentation`; and when the case has no label.
    """
    if not case.label:
        raise FileError(case.images[0], "has no label")
    values = dataset.labels.readable
    read = [read_segmentation(path, image, values, threshold=dataset.threshold) for path in case.label]
    if len(read) == 1:
        return read[0]
    raters = np.stack([np.asarray(label.dataobj) for label in read])
    votes = np.stack([(raters == value).sum(axis=0) for value in sorted(values)])
    chosen = np.array(sorted(values), np.uint8)[votes.argmax(axis=0)]
    return type(image)(chosen, image.affine, image.header, dtype=np.uint8)
