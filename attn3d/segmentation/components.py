"""Connected components of a mask; voxels are connected by faces, edges and corners (26 neighbours)."""

import functools

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each voxel's component, with 0 for the background, and the number of voxels of each component."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return pieces, np.bincount(pieces.ravel())


def middle_of_largest(mask: np.ndarray) -> np.ndarray:
    """The voxel of the largest component that is nearest to its centre of mass, which may lie outside of it."""
    piece = largest(mask)
    (box,) = ndimage.find_objects(piece, max_label=1)
    inside = piece[box]
    sides = zip(inside.shape, ndimage.center_of_mass(inside), strict=True)
    distances = functools.reduce(np.add.outer, [(np.arange(size) - middle) ** 2 for size, middle in sides])
    nearest = np.where(inside, distances, np.inf).argmin()
    return np.array(np.unravel_index(nearest, inside.shape)) + [side.start for side in box]


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask; an empty mask stays empty."""
    pieces, sizes = components(mask)
    return pieces == 1 + sizes[1:].argmax() if mask.any() else mask


def without_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """A mask without the components that have fewer than ``voxels`` voxels."""
    pieces, sizes = components(mask)
    return mask & (sizes >= voxels)[pieces]
