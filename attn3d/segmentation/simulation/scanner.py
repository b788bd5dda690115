"""Simulates the CT scan of a head: Hounsfield units, structures that look like blood, noise and thick slices."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

from attn3d.segmentation.simulation.anatomy import SUBSLICES, Head, edge, sample_head, smooth_noise
from attn3d.segmentation.simulation.haemorrhages import HAEMORRHAGES, bleed

_AIR, _CSF, _GREY, _WHITE, _OEDEMA = -1000.0, 8.0, 38.0, 29.0, 20.0  # HU
_SHARE_LABELLED = 0.4  # a voxel is labelled if this fraction of it is blood ..
_BRIGHTEST_LABELLED = 130.0  # .. and if it is not above this value in HU, where it would be read as bone
# HU; in CSF blood is diluted
_BLOOD = {"EDH": (55, 75), "IPH": (55, 75), "IVH": (50, 64), "SAH": (52, 68), "SDH": (52, 72)}
_NUMBER_OF_KINDS = (0.12, 0.43, 0.28, 0.17)  # the probability of none, one, two and three kinds in a case


def threshold_segmentation(image: nib.Nifti1Image) -> np.ndarray:
    """The baseline for networks: voxels from 48 to 95 HU, after an opening with a voxel and its six neighbours.

    Args:
        image: a head CT in HU, from `read_image`.

    Returns:
        A uint8 mask of the image's shape, 1 for blood of any kind.
    """
    units = np.asarray(image.dataobj)
    return ndimage.binary_opening((units >= 48.0) & (units <= 95.0)).astype(np.uint8)


def sample_scan(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a head CT in 5 mm slices: HU as float32, the values of `HAEMORRHAGES` as uint8, the affine to mm.

    The first axis points right, the last one up.
    """
    head = sample_head(random)
    kinds = random.choice(list(HAEMORRHAGES), random.choice(len(_NUMBER_OF_KINDS), p=_NUMBER_OF_KINDS), replace=False)
    tissue = _parenchyma(random, head)
    free = np.ones_like(head.depth)
    bleeds = {}
    for kind in kinds:
        bleeds[kind], halo = bleed(random, head, HAEMORRHAGES[kind], free)
        tissue += halo * (head.grey + head.white) * (_OEDEMA - tissue)
        free -= bleeds[kind]
    for kind, share in bleeds.items():
        blood = random.uniform(*_BLOOD[HAEMORRHAGES[kind]]) + 4 * smooth_noise(random, head.depth.shape, 16)
        tissue += share * (blood - tissue)
    units = _slices(_skull(random, head, tissue))
    bright = units > _BRIGHTEST_LABELLED
    noise = ndimage.gaussian_filter(random.standard_normal(units.shape), (0.6, 0.6, 0))
    units += random.uniform(3, 4.5) * noise / noise.std()

    labels = np.zeros(units.shape, np.uint8)
    if bleeds:
        shares = np.stack([_slices(share) for share in bleeds.values()])
        blood = (shares.sum(axis=0) > _SHARE_LABELLED) & ~bright
        labels[blood] = np.array(list(bleeds))[shares.argmax(axis=0)][blood]
    affine = head.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (SUBSLICES - 1) / 2
    affine[:3, 2] *= SUBSLICES
    return np.clip(units, -1024, 3071).astype(np.float32), labels, affine


def _parenchyma(random: np.random.Generator, head: Head) -> np.ndarray:
    """HU inside of the skull without blood: tissue, dura, calcifications and beam hardening."""
    x, y, z = head.place
    units = _CSF + (_GREY - _CSF) * head.grey + (_WHITE - _CSF) * head.white
    brighter = random.uniform(1, 6) * np.exp(-np.maximum(head.depth, 0) / 6)  # beam hardening under the skull
    darker = random.uniform(0, 14) * np.exp(-(((y + 22) / 6) ** 2) - ((z + 34) / 7) ** 2)  # between the petrous bones
    units += brighter - darker

    above = edge(z - 8, 6.0)
    falx = np.clip(1.4 - abs(x), 0, 1) * edge(26 - head.depth, 6.0) * above
    sinus = edge(4 * (1 - head.depth / 7) - abs(x)) * above
    dura = np.maximum(falx, sinus) * (1 - head.ventricle)
    units += dura * (random.uniform(48, 62) - units)
    for centre, radius, calcium in _calcifications(random, head):
        units += edge(radius - np.linalg.norm(head.place - centre, axis=0)) * (calcium - units)
    return units


def _calcifications(random: np.random.Generator, head: Head) -> list[tuple[np.ndarray, float, float]]:
    """Centre, radius in mm and HU of calcifications: pineal gland, choroid plexus, basal ganglia, random positions."""
    centres: list[Sequence[float] | np.ndarray] = []
    if random.random() < 0.6:
        centres.append((0, -30, 4))
    if random.random() < 0.5:
        centres += [(-24, -42, 8), (24, -42, 8)]
    if random.random() < 0.2:
        centres += [(-20, -2, 0), (20, -2, 0)]
    for _ in range(random.integers(0, 4)):
        inside = np.flatnonzero(head.depth > 6)
        centres.append(head.place.reshape(3, -1)[:, random.choice(inside)])
    return [
        (np.array(centre, np.float32)[:, None, None, None], random.uniform(1.8, 4.0), random.uniform(90, 180))
        for centre in centres
    ]


def _skull(random: np.random.Generator, head: Head, inside: np.ndarray) -> np.ndarray:
    """HU of the whole field of view: the given inside, and bone with its spongy middle, muscle, fat, skin and air."""
    bumps = smooth_noise(random, head.depth.shape, 6)
    thickness = np.clip(random.uniform(5.5, 8.0) + bumps, 4, None)
    scalp = np.clip(random.uniform(5.0, 8.0) + smooth_noise(random, head.depth.shape, 6), 3, None)
    over = np.clip(head.height / thickness, 0, 1)
    compact = random.uniform(900, 1200)
    bone = compact - 450 * np.exp(-(((over - 0.5) / 0.2) ** 2))
    base = head.height < 0  # petrous and sphenoid bone, with air cells
    bone[base] = (0.6 * compact + 250 * smooth_noise(random, head.depth.shape, 30))[base]

    over = head.height - thickness
    soft = np.where((over > 1.5) & (over < scalp - 2), -70.0, 40.0)
    units = bone + head.cavity * (inside - bone)
    units = soft + edge(-over) * (units - soft)
    return _AIR + edge(scalp - over) * (units - _AIR)


def _slices(fine: np.ndarray) -> np.ndarray:
    """Averages fine slices to thick ones."""
    return fine.reshape(*fine.shape[:2], -1, SUBSLICES).mean(axis=-1)
