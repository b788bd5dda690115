"""Connected components of a mask; voxels are connected by faces, edges and corners (26 neighbours)."""

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each voxel's component, with 0 for the background, and the number of voxels of each component."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return pieces, np.bincount(pieces.ravel())


def middle_of_largest(mask: np.ndarray) -> np.ndarray:
    """The voxel of the largest component that is nearest to its centre of mass, which may lie outside of it."""
    voxels = np.argwhere(largest(mask))
    return voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask; an empty mask stays empty."""
    pieces, sizes = components(mask)
    return pieces == 1 + sizes[1:].argmax() if mask.any() else mask


def without_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """A mask without the components that have fewer than ``voxels`` voxels."""
    pieces, sizes = components(mask)
    return mask & (sizes >= voxels)[pieces]
