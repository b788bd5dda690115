"""The properties of a data set, and the grid, patch size, strides and kernels of a network that follow from them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from rich.progress import track

from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import FileError, failure_noted, failure_of
from attn3d.segmentation.grid import voxel_millilitres

logger = logging.getLogger("attn3d")
_COARSE = 3.0  # an axis with this multiple of the finest spacing has thick slices
_NEAR_ISOTROPIC = 2.0  # from nnU-Net: axes are pooled and convolved below this multiple of the finest spacing
_SMALLEST_MAP = 4  # smallest size of an axis after pooling, in voxels


@dataclass(frozen=True)
class Fingerprint:
    """Properties of the scans and labels of the training cases.

    Attributes:
        cases: number of cases.
        shape: median number of voxels along right, anterior and superior.
        spacing: median spacing along these axes in mm.
        spacing_range: smallest and largest spacing along each axis.
        intensities: percentiles 0.5, 50 and 99.5, mean and standard deviation of each channel, over the labelled
            voxels.
        cases_with: number of cases that have each label.
        volume_ml: median volume of each label over these cases.
        scans: as ``intensities``, over all voxels.
        labelled: as ``intensities`` of the first channel, for each label.
        darkest: the smallest and the largest `darkest_of` of all scans.
    """

    cases: int
    shape: tuple[float, ...]
    spacing: tuple[float, ...]
    spacing_range: tuple[tuple[float, float], ...]
    intensities: tuple[dict[str, float], ...]
    cases_with: dict[str, int]
    volume_ml: dict[str, float]
    scans: tuple[dict[str, float], ...] = ()
    labelled: dict[str, dict[str, float]] = field(default_factory=dict)
    darkest: tuple[float, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """The working grid, the patch size and the resolutions of a network.

    Attributes:
        spacing: mm per voxel along right, anterior and superior.
        patch_size: voxels per axis, a multiple of the product of the strides.
        strides: the stride of each downsampling, per axis.
        whole: whether a patch contains the median scan.
    """

    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    whole: bool = False


def take_fingerprint(dataset: Dataset, cases: Sequence[Case], *, quiet: bool = False) -> Fingerprint:
    """Reads all training cases once. Held-out cases must not be among ``cases``.

    Raises:
        FileError: when files cannot be used, which it lists, or no voxel of any case is labelled.
    """
    failed: dict[str, str] = {}
    shapes, spacings, samples, scans, darkest = [], [], [], [], []
    inside: dict[str, list[np.ndarray]] = {name: [] for name in dataset.labels.names}
    volumes: dict[str, list[float]] = {name: [] for name in dataset.labels.names}
    for case in track(cases, "reading the training cases", disable=quiet):
        with failure_noted(case.images[0], failed):
            images = read_case_image(case)
            label = read_case_label(case, dataset, images[0])
        if failed:  # the other cases are only checked
            continue
        canonical = nib.as_closest_canonical(images[0])
        labels = dataset.labels.without_ignored(np.asarray(label.dataobj))
        shapes.append(canonical.shape)
        spacings.append(nib.affines.voxel_sizes(canonical.affine))
        samples.append([_sample(image, labels > 0) for image in images])
        scans.append([_sample(image, ...) for image in images])
        darkest.append(darkest_of(images[0]))
        millilitres = voxel_millilitres(canonical.affine)
        for name, mask in dataset.labels.masks(labels):
            if count := int(mask.sum()):
                volumes[name].append(count * millilitres)
                inside[name].append(_sample(images[0], mask))
    if failed:
        raise failure_of(dataset.folder, failed)
    if not any(volumes.values()):
        raise FileError(dataset.folder, f"no voxel of its {len(cases)} training cases is labelled; check the labels")
    if missing := [repr(name) for name, found in volumes.items() if not found]:
        what, it = ("label", "it") if len(missing) == 1 else ("labels", "they")
        logger.warning("No training case has the %s %s, so %s cannot be learnt.", what, ", ".join(missing), it)
    return Fingerprint(
        cases=len(cases),
        shape=tuple(np.median(shapes, axis=0).tolist()),
        spacing=tuple(np.round(np.median(spacings, axis=0), 4).tolist()),
        spacing_range=tuple(
            (round(low, 4), round(high, 4))
            for low, high in zip(np.min(spacings, axis=0).tolist(), np.max(spacings, axis=0).tolist(), strict=True)
        ),
        intensities=tuple(_summary(channel) for channel in zip(*samples, strict=True)),
        cases_with={name: len(found) for name, found in volumes.items()},
        volume_ml={name: round(float(np.median(found)), 3) for name, found in volumes.items() if found},
        scans=tuple(_summary(channel) for channel in zip(*scans, strict=True)),
        labelled={name: _summary(found) for name, found in inside.items() if found},
        darkest=(min(darkest), max(darkest)),
    )


def darkest_of(image: nib.Nifti1Image) -> float:
    """The percentile 0.5 of a scan, which is air in most CT."""
    return round(float(np.percentile(_sample(image, ...), 0.5)), 4)


def propose_geometry(
    fingerprint: Fingerprint,
    patch_voxels: int,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
) -> Geometry:
    """Proposes the working grid for a data set, by rules similar to nnU-Net's (Isensee et al., Nature Methods 2021).

    The spacing is the median spacing. Along an axis at least three times coarser than the finest one, it is the
    smallest spacing plus a tenth of the difference to the median, so that thick slices do not become thicker. If the
    median scan has at most ``patch_voxels`` voxels, a patch contains the whole scan. Otherwise the sides of a patch are
    equal in mm, but not larger than the scan. At each resolution, an axis is halved if its spacing is less than twice
    the finest one and it has 8 voxels or more.

    Args:
        fingerprint: properties of the training cases.
        patch_voxels: approximate number of voxels in a patch.
        spacing: spacing in mm, to use instead of a proposed one.
        patch_size: patch size in voxels, to use instead of a proposed one.
    """
    if spacing is None:
        median = np.array(fingerprint.spacing)
        smallest = np.array(fingerprint.spacing_range)[:, 0]
        coarse = median >= _COARSE * median.min()
        spacing = np.where(coarse, np.maximum(smallest + 0.1 * (median - smallest), median.min()), median).tolist()
    grid = np.array(fingerprint.shape) * fingerprint.spacing / np.array(spacing)
    whole = patch_size is None and bool(np.prod(grid) <= patch_voxels)
    wanted = _patch(grid, np.array(spacing), patch_voxels) if patch_size is None else np.array(patch_size, float)
    strides = _strides(wanted, np.array(spacing))
    multiple = np.prod(strides, axis=0, dtype=int) if strides else np.ones(3, int)
    if patch_size is None:
        wanted = np.maximum(1, (np.ceil if whole else np.round)(wanted / multiple)) * multiple
    return Geometry(tuple(float(round(one, 4)) for one in spacing), tuple(int(one) for one in wanted), strides, whole)


def _patch(grid: np.ndarray, spacing: np.ndarray, voxels: int) -> np.ndarray:
    """Voxels along each axis: equal lengths in mm, but at most the size of the scans."""
    fixed = np.zeros(3, bool)
    while True:
        volume = voxels * np.prod(spacing) / np.prod((grid * spacing)[fixed])
        extent = volume ** (1 / max(1, (~fixed).sum()))
        size = np.where(fixed, grid, extent / spacing)
        over = (size > grid) & ~fixed
        if not over.any():
            return size
        fixed |= over


def _strides(size: np.ndarray, spacing: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The strides between the resolutions. The finest spacing is that of the axes that can still be halved."""
    strides: list[tuple[int, ...]] = []
    while (large := size >= 2 * _SMALLEST_MAP).any():
        step = np.where(large & (spacing < _NEAR_ISOTROPIC * spacing[large].min()), 2, 1)
        strides.append(tuple(step.tolist()))
        size, spacing = size / step, spacing * step
    return tuple(strides)


def propose_kernels(strides: Sequence[Sequence[int]], spacing: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """The kernel sizes of all resolutions: 3 along an axis from the first resolution where its spacing is less than
    twice the finest one, and 1 before. ``spacing`` is that of the first resolution, in mm.
    """
    steps = np.cumprod(np.concatenate([np.ones((1, 3)), np.reshape(strides, (-1, 3))]), axis=0)
    spacings = steps * np.array(spacing)
    fine = np.logical_or.accumulate(spacings < _NEAR_ISOTROPIC * spacings.min(axis=1, keepdims=True))
    return tuple(tuple(one) for one in np.where(fine, 3, 1).tolist())


def _sample(image: nib.Nifti1Image, chosen: Any) -> np.ndarray:
    """About 10,000 of the chosen voxels at most, at equal intervals."""
    values = np.asarray(image.dataobj)[chosen].ravel()
    return values[:: 1 + len(values) // 10_000].astype(np.float64)


def _summary(parts: Sequence[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(parts)
    names = ("percentile_0.5", "median", "percentile_99.5", "mean", "standard_deviation")
    numbers = (*np.percentile(values, (0.5, 50, 99.5)), values.mean(), values.std())
    return {name: round(float(one), 4) for name, one in zip(names, numbers, strict=True)}
