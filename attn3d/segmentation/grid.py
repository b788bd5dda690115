"""The grid that a network works on, and the way there and back.

Scans come in any orientation and spacing. A network sees them with the axes in the order right, anterior,
superior (RAS) at one spacing; its probabilities, not its labels, go back to the scan's own voxels.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing, SpatialResample

_RAS = (("L", "R"), ("P", "A"), ("I", "S"))


def to_grid(image: nib.Nifti1Image, spacing: Sequence[float], mode: str = "bilinear") -> MetaTensor:
    """A scan, or with ``mode="nearest"`` its label, as (1, *S) along its own axes nearest to RAS.

    Args:
        image: from `read_image` or `read_label`.
        spacing: millimetres per voxel along right, anterior, superior.
        mode: the interpolation, "bilinear" (trilinear in 3-D) or "nearest".
    """
    data = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None]
    volume = MetaTensor(data, affine=torch.from_numpy(image.affine))
    volume = Orientation("RAS", labels=_RAS)(volume)
    return Spacing(tuple(spacing), mode=mode, padding_mode="border")(volume)


def from_grid(volume: MetaTensor, like: nib.Nifti1Image) -> torch.Tensor:
    """What was found on the working grid, (C, *S), for the voxels of the scan ``like``: (C, *like.shape).

    A voxel between others gets their weighted mean, one at the border what is nearest.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="border")
    resampled = resample(volume, dst_affine=torch.from_numpy(like.affine), spatial_size=like.shape)
    return resampled.as_tensor()
