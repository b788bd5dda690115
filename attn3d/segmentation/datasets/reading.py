"""From a case to its scan and its label."""

import nibabel as nib
import numpy as np

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.files import FileError, check_same_grid, read_image, read_segmentation


def read_case_image(case: Case) -> list[nib.Nifti1Image]:
    """The channels of a case as float32, on one grid.

    Raises:
        FileError: as `read_image`; and when a channel lies on another grid than the first.
    """
    first, *others = (read_image(path) for path in case.images)
    for path, image in zip(case.images[1:], others, strict=True):
        check_same_grid(path, image, first)
    return [first, *others]


def read_case_label(case: Case, dataset: Dataset, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The label of a case as uint8 on the scan's grid; without a haemorrhage it is empty.

    Of several raters, the value with most votes counts at each voxel, and in a tie the smaller one, so that the
    background wins over a label.

    Args:
        case: with a label.
        dataset: that the case is of; says which values there are and what a mask's threshold is.
        image: from `read_case_image`.

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
