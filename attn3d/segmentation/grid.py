"""The grid that a network works on, and the way there and back.

Scans come in any orientation and spacing. A network sees them with the axes in the order right, anterior,
superior (RAS) at one spacing; its probabilities, not its labels, go back to the scan's own voxels.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, SpatialResample

_RAS = (("L", "R"), ("P", "A"), ("I", "S"))
_MOST_VOXELS = 2**30  # of a volume on the working grid: 4 GiB in float32
_TIE = 1e-4  # voxels; two labels whose parts of a voxel differ by less share it equally


def to_grid(image: nib.Nifti1Image, spacing: Sequence[float]) -> MetaTensor:
    """A scan as (1, *S) along its own axes nearest to RAS, interpolated linearly.

    The grid covers the extent of the scan, from the outer faces of its first voxels to those of its last, and has the
    same middle: a mirrored scan gives the mirrored volume.

    Args:
        image: from `read_image`.
        spacing: millimetres per voxel along right, anterior, superior.

    Raises:
        ValueError: when the volume would have more than 2^30 voxels.
    """
    volume = _nearest_to_ras(image)
    affine, shape = _grid_over(volume, spacing)
    resample = SpatialResample(mode="bilinear", padding_mode="border")
    return resample(volume, dst_affine=torch.from_numpy(affine), spatial_size=shape)


def label_to_grid(label: nib.Nifti1Image, spacing: Sequence[float]) -> MetaTensor:
    """The labels of a scan on the grid that `to_grid` gives it, (1, *S), uint8.

    A voxel gets the label that covers most of it, and the smaller one of two that cover it equally. At a whole part of
    the scan's spacing each of its voxels thus becomes equally many.

    Args:
        label: from `read_label`.
        spacing: millimetres per voxel along right, anterior, superior.

    Raises:
        ValueError: as `to_grid`.
    """
    volume = _nearest_to_ras(label)
    affine, shape = _grid_over(volume, spacing)
    overlaps = [_overlaps(*sizes) for sizes in zip(volume.shape[1:], shape, _steps(volume, spacing), strict=True)]
    labels = volume.as_tensor()[0]
    background = torch.einsum("i,j,k->ijk", *(overlap.sum(dim=1) for overlap in overlaps))
    found, largest = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape)
    for value in labels[labels > 0].unique().tolist():
        places = (labels == value).nonzero()
        low, high = places.amin(dim=0).tolist(), (places.amax(dim=0) + 1).tolist()
        box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        parts = [overlap[:, one] for overlap, one in zip(overlaps, box, strict=True)]
        covered = torch.einsum("abc,ia,jb,kc->ijk", (labels[box] == value).float(), *parts)
        background -= covered
        more = covered > largest + _TIE
        found[more], largest[more] = int(value), covered[more]
    found[largest < background + _TIE] = 0
    return MetaTensor(found[None], affine=torch.from_numpy(affine))


def from_grid(volume: MetaTensor, like: nib.Nifti1Image) -> torch.Tensor:
    """What was found on the working grid, (C, *S), for the voxels of the scan ``like``: (C, *like.shape).

    A voxel between others gets their weighted mean, one at the border what is nearest.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="border")
    resampled = resample(volume, dst_affine=torch.from_numpy(like.affine), spatial_size=like.shape)
    return resampled.as_tensor()


def _nearest_to_ras(image: nib.Nifti1Image) -> MetaTensor:
    data = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None]
    return Orientation("RAS", labels=_RAS)(MetaTensor(data, affine=torch.from_numpy(image.affine)))


def _steps(volume: MetaTensor, spacing: Sequence[float]) -> np.ndarray:
    """The spacing of the grid in voxels of the volume."""
    return np.asarray(spacing, float) / nib.affines.voxel_sizes(volume.affine.numpy())


def _grid_over(volume: MetaTensor, spacing: Sequence[float]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of the grid over the extent of a volume, with the same middle."""
    steps, size = _steps(volume, spacing), np.array(volume.shape[1:])
    shape = np.maximum(1, np.floor(size / steps + 0.5))
    if np.prod(shape) > _MOST_VOXELS:
        wanted = " x ".join(f"{one:.0f}" for one in shape)
        raise ValueError(
            f"`spacing` {tuple(spacing)} mm makes {wanted} voxels of a scan of {tuple(size.tolist())}, "
            f"more than {_MOST_VOXELS}; check the spacing in the scan's header, or set a coarser one"
        )
    to_volume = np.diag([*steps, 1.0])
    to_volume[:3, 3] = (size - 1) / 2 - steps * (shape - 1) / 2
    return volume.affine.numpy() @ to_volume, tuple(shape.astype(int).tolist())


def _overlaps(size: int, new_size: int, step: float) -> torch.Tensor:
    """(new_size, size): the part of each voxel of the new axis that each of the old covers, both of one middle."""
    edges = size / 2 + step * (np.arange(new_size + 1) - new_size / 2)
    old = np.arange(size)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return torch.from_numpy(shared.clip(min=0) / step).float()
