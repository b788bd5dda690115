"""Resamples scans to the working grid of a network, and probabilities back to the grid of the scan.

Scans have any orientation and spacing. The working grid has the axes right, anterior, superior (RAS) and one spacing
for all scans. Probabilities are resampled back, not labels.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

_MOST_VOXELS = 2**30  # largest number of voxels on the working grid: 4 GiB in float32
_TIE = 1e-4  # two labels cover a voxel equally if their shares of it differ by less


def voxel_millilitres(affine: np.ndarray) -> float:
    """The volume of a voxel in ml, from an affine in mm."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)


def to_grid(image: nib.Nifti1Image, spacing: Sequence[float]) -> MetaTensor:
    """Resamples a scan to (1, *S) by linear interpolation, along the scan's axes that are closest to RAS.

    The grid covers the extent of the scan, from the outer faces of its first voxels to those of its last ones, and has
    the same centre: a mirrored scan gives the mirrored volume. Values outside of the outermost voxel centres are those
    at the centres.

    Args:
        image: from `read_image`.
        spacing: millimetres per voxel along right, anterior, superior.

    Raises:
        ValueError: when the volume would have more than 2^30 voxels.
    """
    affine, shape = _grid_over(nib.as_closest_canonical(image), spacing)
    found = torch.empty(1, *shape)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    if min(voxels.strides) < 0:  # of flipped axes, which PyTorch does not support
        voxels = voxels.copy(order="K")
    planes = torch.from_numpy(voxels)[None].unbind(3)  # in the order of the file
    axis = along(2, image.affine, affine)
    for index, plane in resampled_planes(iter(planes), image.affine, image.shape, affine, shape, 2):
        found.select(1 + axis, index).copy_(plane)
    return MetaTensor(found, affine=torch.from_numpy(affine))


def label_to_grid(label: nib.Nifti1Image, spacing: Sequence[float]) -> MetaTensor:
    """Resamples labels to the grid of `to_grid`, (1, *S), uint8.

    A voxel gets the label that covers most of it, and the smaller value if two labels cover it equally. If the scan's
    spacing is a multiple of the new spacing, every voxel of the scan becomes the same number of voxels.

    Args:
        label: from `read_segmentation`.
        spacing: millimetres per voxel along right, anterior, superior.

    Raises:
        ValueError: as `to_grid`.
    """
    volume = nib.as_closest_canonical(label)
    affine, shape = _grid_over(volume, spacing)
    overlaps = [_overlaps(*sizes) for sizes in zip(volume.shape, shape, _steps(volume, spacing), strict=True)]
    labels = torch.from_numpy(np.ascontiguousarray(volume.dataobj))
    background = torch.einsum("i,j,k->ijk", *(overlap.sum(dim=1) for overlap in overlaps))
    found, largest = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape)
    for value in labels[labels > 0].unique().tolist():
        mask = labels == value
        there = [mask.any(dim=(1, 2)), mask.any(dim=(0, 2)), mask.any(dim=(0, 1))]
        box = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in (side.nonzero() for side in there))
        parts = [overlap[:, one] for overlap, one in zip(overlaps, box, strict=True)]
        covered = torch.einsum("abc,ia,jb,kc->ijk", mask[box].float(), *parts)
        background -= covered
        more = covered > largest + _TIE
        found[more], largest[more] = int(value), covered[more]
    found[largest < background + _TIE] = 0
    return MetaTensor(found[None], affine=torch.from_numpy(affine))


def resampled_planes(
    planes: Iterator[Tensor],
    affine: np.ndarray,
    shape: Sequence[int],
    new_affine: np.ndarray,
    new_shape: Sequence[int],
    axis: int,
) -> Iterator[tuple[int, Tensor]]:
    """Resamples a volume to another grid plane by plane, so that neither of them has to be in memory as a whole.

    Interpolation is linear; voxels outside of the outermost voxel centres get the values at these centres. The axes of
    both grids are parallel, in any order and direction, as those of a scan and its working grid. Therefore each axis is
    interpolated separately.

    Args:
        planes: the planes (C, *rest) of the volume along ``axis``, in order.
        affine: affine of the volume.
        shape: shape of the volume.
        new_affine: affine of the new grid.
        new_shape: shape of the new grid.
        axis: the axis of the volume that the planes are perpendicular to.

    Yields:
        The index and the plane (C, *rest) of the new grid along its axis that is parallel to ``axis``, see `along`. The
        order is that of ``planes``, so the indices may be descending.
    """
    to_volume = np.linalg.inv(affine) @ new_affine
    parallel = np.abs(to_volume[:3, :3]).argmax(axis=0)  # for each axis of the new grid, that of the volume
    between = [
        _between(to_volume[old, new] * np.arange(new_shape[new]) + to_volume[old, 3], shape[old])
        for new, old in enumerate(parallel)
    ]
    new_axis = along(axis, affine, new_affine)
    rest = [new for new in range(3) if new != new_axis]
    turned = parallel[rest[0]] > parallel[rest[1]]  # whether the two axes of a plane change places
    lower, weights = between[new_axis]
    last_two: deque[Tensor] = deque(maxlen=2)  # the planes on both sides of the new one
    received = 0
    order = range(new_shape[new_axis])
    for index in order if to_volume[axis, new_axis] > 0 else reversed(order):
        while received < min(int(lower[index]) + 2, shape[axis]):
            plane = next(planes)
            last_two.append(plane.transpose(1, 2) if turned else plane)
            received += 1
        plane = torch.lerp(last_two[0], last_two[-1], weights[index].item())
        for dim, new in enumerate(rest, 1):
            plane = _interpolated(plane, dim, *between[new])
        yield index, plane


def along(axis: int, affine: np.ndarray, new_affine: np.ndarray) -> int:
    """The axis of a new grid that is parallel to an axis of a volume."""
    return int(np.abs((np.linalg.inv(affine) @ new_affine)[axis, :3]).argmax())


def _between(positions: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """For each position along an axis, the index of the voxel at or before it, and the fraction of the way to the next.

    The index is at most that of the last voxel but one, if there are several.
    """
    positions = np.round(positions, 6).clip(0, size - 1)  # removes rounding errors of the inverse
    lower = np.minimum(np.floor(positions), max(size - 2, 0))
    return torch.from_numpy(lower.astype(np.int64)), torch.from_numpy((positions - lower).astype(np.float32))


def _interpolated(plane: Tensor, dim: int, lower: Tensor, weights: Tensor) -> Tensor:
    size = plane.shape[dim]
    if len(lower) == size and torch.equal(lower + weights, torch.arange(size, dtype=torch.float32)):
        return plane
    upper = (lower + 1).clamp(max=size - 1)
    shape = [-1 if one == dim else 1 for one in range(3)]
    return torch.lerp(plane.index_select(dim, lower), plane.index_select(dim, upper), weights.view(shape))


def _grid_over(volume: nib.Nifti1Image, spacing: Sequence[float]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of the grid over the extent of a volume, with the same centre."""
    steps, size = _steps(volume, spacing), np.array(volume.shape)
    shape = np.maximum(1, np.floor(size / steps + 0.5))
    if np.prod(shape) > _MOST_VOXELS:
        wanted = " x ".join(f"{one:.0f}" for one in shape)
        raise ValueError(
            f"`spacing` {tuple(spacing)} mm gives {wanted} voxels for a scan of {tuple(size.tolist())}, "
            f"more than {_MOST_VOXELS}; check the spacing in the scan's header, or set a larger `spacing`"
        )
    to_volume = np.diag([*steps, 1.0])
    to_volume[:3, 3] = (size - 1) / 2 - steps * (shape - 1) / 2
    return volume.affine @ to_volume, tuple(shape.astype(int).tolist())


def _steps(volume: nib.Nifti1Image, spacing: Sequence[float]) -> np.ndarray:
    """The spacing of the grid in voxels of the volume."""
    return np.asarray(spacing, float) / nib.affines.voxel_sizes(volume.affine)


def _overlaps(size: int, new_size: int, step: float) -> torch.Tensor:
    """(new_size, size): the fraction of each new voxel that each old voxel covers. Both axes have the same centre."""
    edges = size / 2 + step * (np.arange(new_size + 1) - new_size / 2)
    old = np.arange(size)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return torch.from_numpy(shared.clip(min=0) / step).float()
