"""Tissues told apart by intensity alone: what any network has to be compared with."""

import nibabel as nib
import numpy as np
from sklearn.mixture import GaussianMixture

_FIT_VOXELS = 200_000


def gaussian_mixture(image: nib.Nifti1Image, label: nib.Nifti1Image, training_part: tuple[slice, ...]) -> np.ndarray:
    """Segments a scan by a mixture of Gaussians with one variance, a component for each label.

    It is told more than a network: which voxels are labelled at all. The components start at the mean
    intensities of the labels in the training part; the fit itself sees no label.

    Args:
        image: from `read_image`.
        label: its reference, from `read_label`.
        training_part: where the labels may be looked at.

    Returns:
        uint8 labels, 0 outside of what ``label`` marks.
    """
    intensities, reference = np.asarray(image.dataobj), np.asarray(label.dataobj)
    known = reference[training_part]
    values = np.unique(known[known > 0])
    starts = [intensities[training_part][known == value].mean(keepdims=True) for value in values]
    voxels = intensities[reference > 0][:, None].astype(np.float64)
    mixture = GaussianMixture(len(values), covariance_type="tied", means_init=starts)
    mixture.fit(voxels[:: 1 + len(voxels) // _FIT_VOXELS])
    labels = np.zeros(reference.shape, np.uint8)
    labels[reference > 0] = values[mixture.predict(voxels)]
    return labels
