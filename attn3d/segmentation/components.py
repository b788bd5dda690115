"""Connected pieces of a mask; voxels are connected by their faces, edges and corners (26)."""

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the piece that each voxel is in, from 1 on, and how many voxels each has; 0 is the background."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return pieces, np.bincount(pieces.ravel())


def middle_of_largest(mask: np.ndarray) -> np.ndarray:
    """The voxel of the largest piece that is nearest to its centre of mass, where a crescent has nothing."""
    pieces, sizes = components(mask)
    voxels = np.argwhere(pieces == 1 + sizes[1:].argmax())
    return voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]


def without_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """A mask without its pieces that have fewer voxels."""
    pieces, sizes = components(mask)
    return mask & (sizes >= voxels)[pieces]
