"""The grid that a network works on, and the way there and back.

Scans come in any orientation and spacing. A network sees them with the axes in the order right, anterior,
superior (RAS) at one spacing; its probabilities, not its labels, go back to the scan's own voxels.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

_MOST_VOXELS = 2**30  # of a volume on the working grid: 4 GiB in float32
_TIE = 1e-4  # voxels; two labels whose parts of a voxel differ by less share it equally


def voxel_millilitres(affine: np.ndarray) -> float:
    """The volume of a voxel in ml, of an affine in mm."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)


def to_grid(image: nib.Nifti1Image, spacing: Sequence[float]) -> MetaTensor:
    """A scan as (1, *S) along its own axes nearest to RAS, interpolated linearly.

    The grid covers the extent of the scan, from the outer faces of its first voxels to those of its last, and has the
    same middle: a mirrored scan gives the mirrored volume. Beyond the middles of the outermost voxels it is as there.

    Args:
        image: from `read_image`.
        spacing: millimetres per voxel along right, anterior, superior.

    Raises:
        ValueError: when the volume would have more than 2^30 voxels.
    """
    affine, shape = _grid_over(nib.as_closest_canonical(image), spacing)
    found = torch.empty(1, *shape)
    planes = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None].unbind(3)  # as they lie in a file
    axis = along(2, image.affine, affine)
    for index, plane in resampled_planes(iter(planes), image.affine, image.shape, affine, shape, 2):
        found.select(1 + axis, index).copy_(plane)
    return MetaTensor(found, affine=torch.from_numpy(affine))


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
    volume = nib.as_closest_canonical(label)
    affine, shape = _grid_over(volume, spacing)
    overlaps = [_overlaps(*sizes) for sizes in zip(volume.shape, shape, _steps(volume, spacing), strict=True)]
    labels = torch.from_numpy(np.ascontiguousarray(volume.dataobj))
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


def resampled_planes(
    planes: Iterator[Tensor],
    affine: np.ndarray,
    shape: Sequence[int],
    new_affine: np.ndarray,
    new_shape: Sequence[int],
    axis: int,
) -> Iterator[tuple[int, Tensor]]:
    """Brings a volume to another grid plane by plane, so that neither of the two need be there as a whole.

    A voxel between others gets their weighted mean, one beyond the outermost what they have. Both grids have the same
    axes, in any order and direction, as a scan and its working grid do; so each axis is interpolated by itself.

    Args:
        planes: across an axis of the volume, in its order, (C, *rest).
        affine: of the volume.
        shape: of the volume.
        new_affine: of the grid that it is brought to.
        new_shape: of that grid.
        axis: of the volume, which the planes follow each other along.

    Yields:
        Index and plane (C, *rest) along the axis of the new grid that lies along ``axis``, `along` says which; from the
        first of the planes to the last, and so perhaps from the last index to the first.
    """
    to_volume = np.linalg.inv(affine) @ new_affine
    source = np.abs(to_volume[:3, :3]).argmax(axis=0)  # the volume's axis along each of the new grid
    lower, weights = zip(
        *(
            _between(to_volume[one, new] * np.arange(new_shape[new]) + to_volume[one, 3], shape[one])
            for new, one in enumerate(source)
        ),
        strict=True,
    )
    new_axis = along(axis, affine, new_affine)
    rest = [new for new in range(3) if new != new_axis]
    turned = source[rest[0]] > source[rest[1]]
    held: deque[Tensor] = deque(maxlen=2)
    arrived = 0
    for index in torch.argsort(lower[new_axis] + weights[new_axis], stable=True).tolist():
        while arrived < min(int(lower[new_axis][index]) + 2, shape[axis]):
            plane = next(planes)
            held.append(plane.transpose(1, 2) if turned else plane)
            arrived += 1
        plane = torch.lerp(held[0], held[-1], weights[new_axis][index].item())
        for dim, new in enumerate(rest, 1):
            plane = _interpolated(plane, dim, lower[new], weights[new])
        yield index, plane


def along(axis: int, affine: np.ndarray, new_affine: np.ndarray) -> int:
    """The axis of a grid that lies along an axis of another, of which `resampled_planes` speaks."""
    return int(np.abs((np.linalg.inv(affine) @ new_affine)[axis, :3]).argmax())


def _between(positions: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """The voxel at or before each position along an axis, never the last of several, and how far it lies behind it."""
    positions = np.round(positions, 6).clip(0, size - 1)  # what inverting left beside a voxel is on it
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
    """Affine and shape of the grid over the extent of a volume, with the same middle."""
    steps, size = _steps(volume, spacing), np.array(volume.shape)
    shape = np.maximum(1, np.floor(size / steps + 0.5))
    if np.prod(shape) > _MOST_VOXELS:
        wanted = " x ".join(f"{one:.0f}" for one in shape)
        raise ValueError(
            f"`spacing` {tuple(spacing)} mm makes {wanted} voxels of a scan of {tuple(size.tolist())}, "
            f"more than {_MOST_VOXELS}; check the spacing in the scan's header, or set a coarser one"
        )
    to_volume = np.diag([*steps, 1.0])
    to_volume[:3, 3] = (size - 1) / 2 - steps * (shape - 1) / 2
    return volume.affine @ to_volume, tuple(shape.astype(int).tolist())


def _steps(volume: nib.Nifti1Image, spacing: Sequence[float]) -> np.ndarray:
    """The spacing of the grid in voxels of the volume."""
    return np.asarray(spacing, float) / nib.affines.voxel_sizes(volume.affine)


def _overlaps(size: int, new_size: int, step: float) -> torch.Tensor:
    """(new_size, size): the part of each voxel of the new axis that each of the old covers, both of one middle."""
    edges = size / 2 + step * (np.arange(new_size + 1) - new_size / 2)
    old = np.arange(size)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return torch.from_numpy(shared.clip(min=0) / step).float()
