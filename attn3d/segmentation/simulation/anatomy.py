"""The anatomy of a simulated case: the MNI152 maps, deformed, scaled and rotated, on the fine grid of a scan.

The maps give grey and white matter. The skull follows from the distance to the brain; it is closed over the convexity
and thick at the base.
"""

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
import torch
from nilearn import datasets
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

SLICE = 5.0  # slice thickness in mm
SUBSLICES = 3  # fine slices that are averaged to one slice
_FIELD_OF_VIEW = (196.0, 232.0, 170.0)  # mm
_CENTRE = np.array((0.0, -17.0, 18.0))  # of the field of view and of the head, in the template's mm
_TEMPLATE_VOXEL = 2.0  # mm; the maps have 1 mm and are averaged


@dataclass(frozen=True)
class Head:
    """The anatomy of a head at each voxel of the fine grid.

    Attributes:
        affine: maps voxel indices of the fine grid to millimetres.
        place: the coordinates in the MNI152 template in mm, (3, X, Y, Z).
        grey: fraction of grey matter.
        white: fraction of white matter.
        ventricle: fraction of the ventricles.
        depth: distance below the inner surface of the skull in mm, negative in bone.
        height: distance in mm above that surface after its clefts at the base are closed.
        voxel_ml: volume of a voxel in ml.
    """

    affine: np.ndarray
    place: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    ventricle: np.ndarray
    depth: np.ndarray
    height: np.ndarray
    voxel_ml: float

    @property
    def cavity(self) -> np.ndarray:
        """The fraction of each voxel that is inside the skull."""
        return edge(self.depth)


def edge(distance: np.ndarray, width: float = 2.0) -> np.ndarray:
    """The fraction of a voxel inside a surface, from its distance in mm: a ramp of the given width."""
    return np.clip(0.5 + distance / width, 0.0, 1.0, dtype=np.float32)


def smooth_noise(random: np.random.Generator, shape: tuple[int, ...], knots: int) -> np.ndarray:
    """Smooth noise with unit variance and about ``knots`` bumps along each axis."""
    coarse = ndimage.gaussian_filter(random.standard_normal((3 * knots,) * 3), 1.5)
    coarse = torch.from_numpy((coarse - coarse.mean()) / coarse.std()).float()
    return interpolate(coarse[None, None], size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def rotation(degrees: np.ndarray) -> np.ndarray:
    """The rotation matrix of rotations about z, then y, then x."""
    return nib.eulerangles.euler2mat(*np.radians(degrees)[::-1])


def sample_head(random: np.random.Generator) -> Head:
    """Draws a head: its size, shape and pose, and the grid of the scan are random."""
    spacing = np.array((*(random.uniform(1.8, 2.0),) * 2, SLICE / SUBSLICES))
    shape = tuple(np.ceil(_FIELD_OF_VIEW[:2] / spacing[:2]).astype(int)) + (int(_FIELD_OF_VIEW[2] / SLICE) * SUBSLICES,)
    tilt = random.uniform((4, -4, -4), (18, 4, 4)) if random.random() < 0.5 else np.zeros(3)
    grid = np.eye(4)
    grid[:3, :3] = rotation(tilt) * spacing
    grid[:3, 3] = _CENTRE + random.normal(0, 3, 3) - grid[:3, :3] @ ((np.array(shape) - 1) / 2)

    pose = np.eye(4)
    size = random.normal(1.0, 0.03) * random.normal(1.0, 0.02, 3)
    pose[:3, :3] = rotation(random.normal(0, 3, 3)) / np.clip(size, 0.92, 1.06)
    pose[:3, 3] = _CENTRE - pose[:3, :3] @ _CENTRE
    to_template = pose @ grid
    i, j, k = np.ogrid[tuple(slice(size) for size in shape)]
    place = np.stack([row[0] * i + row[1] * j + row[2] * k + row[3] for row in to_template[:3]]).astype(np.float32)
    for axis in range(3):
        place[axis] += 2.5 * smooth_noise(random, shape, knots=6)

    grey, white, brain, helmet, ventricle = _at(place)
    rim = random.uniform(1.5, 4.0)  # mm of CSF around the brain, which grows with age
    swollen = random.uniform(-0.5, 2.0)  # mm by which the surface of the template's ventricles is moved outwards
    inside = edge(ventricle + swollen)
    return Head(
        affine=grid,
        place=place,
        grey=grey * (1 - inside),
        white=white * (1 - inside),
        ventricle=inside,
        depth=brain + rim,
        height=-helmet - rim,
        voxel_ml=float(spacing.prod() / 1000),
    )


def _at(place: np.ndarray) -> np.ndarray:
    """The template's maps, interpolated at template coordinates in mm."""
    maps, affine = _template()
    offset = affine[:3, 3]
    extent = _TEMPLATE_VOXEL * (np.array(maps.shape[1:]) - 1)
    grid = torch.stack([torch.from_numpy((place[a] - offset[a]) * (2 / extent[a]) - 1).float() for a in (2, 1, 0)], -1)
    return grid_sample(maps[None], grid[None], padding_mode="border", align_corners=True)[0].numpy()


@cache
def _template() -> tuple[torch.Tensor, np.ndarray]:
    """Five maps on a grid of 2 mm, and its affine: grey, white, depths in brain, closed brain and ventricles."""
    load = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    images = [loader(resolution=1) for loader in load]
    grey, white, brain = (_halved(image.get_fdata(dtype=np.float32)) for image in images)
    affine = images[0].affine @ np.diag([_TEMPLATE_VOXEL] * 3 + [1.0])
    affine[:3, 3] += (_TEMPLATE_VOXEL - 1) / 2
    brain = _closed(brain > 0.5, 8)
    # Larger clefts, between the temporal lobes and the cerebellum, become bone.
    surfaces = brain, _closed(brain, 24), _ventricles(1 - grey - white, brain, affine)
    maps = [grey * brain, white * brain, *map(_inside, surfaces)]
    return torch.from_numpy(np.stack(maps).astype(np.float32)), affine


def _halved(fine: np.ndarray) -> np.ndarray:
    """Averages pairs of voxels along each axis. A last voxel without a partner is dropped."""
    x, y, z = (size // 2 for size in fine.shape)
    return fine[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def _ventricles(csf: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The lateral ventricles, found as CSF far from the brain's surface, and the third and fourth ventricle."""
    i, j, k = np.indices(csf.shape, dtype=np.float32)
    x, y, z = (affine[axis, axis] * index + affine[axis, 3] for axis, index in enumerate((i, j, k)))
    third = (abs(x) < 4) & (abs(y + 14) < 16) & (abs(z + 3) < 9)
    fourth = (abs(x) < 10) & (abs(y + 44) < 8) & (abs(z + 33) < 10)
    lateral = (abs(x) < 40) & (abs(y + 12) < 48) & (abs(z - 9) < 22) & (_inside(brain) > 22)
    lateral &= (y > -22) | (abs(x) > 8 + 6 * (z < 4))  # without the cisterns around the midbrain
    parts, _ = ndimage.label((csf > 0.4) & lateral)
    sizes = np.bincount(parts.ravel())[1:]
    large = np.isin(parts, 1 + np.flatnonzero(sizes * _TEMPLATE_VOXEL**3 > 1000))
    return large | ((csf > 0.5) & (third | fourth))


def _closed(mask: np.ndarray, millimetres: float) -> np.ndarray:
    """The mask after a closing with a ball of this radius."""
    reach = millimetres / _TEMPLATE_VOXEL
    return ndimage.distance_transform_edt(ndimage.distance_transform_edt(~mask) <= reach) > reach


def _inside(mask: np.ndarray) -> np.ndarray:
    """The distance to the surface of the mask in mm, negative outside of the mask."""
    return _TEMPLATE_VOXEL * (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask))
