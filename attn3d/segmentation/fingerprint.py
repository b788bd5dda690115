"""What a data set looks like, and what that asks of a network: its grid, its patches, its strides and kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from rich.progress import track

from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import failing_as
from attn3d.segmentation.grid import voxel_millilitres

_COARSE = 3.0  # times the finest spacing: from here on the slices of a scan are thick
_NEAR_ISOTROPIC = 2.0  # nnU-Net's: an axis is pooled, and seen by a kernel, when it is less than so much coarser
_SMALLEST_MAP = 4  # voxels along an axis that is not halved further


@dataclass(frozen=True)
class Fingerprint:
    """The scans and labels of the training cases.

    Attributes:
        cases: how many.
        shape: the median number of voxels along right, anterior and superior.
        spacing: the median of their distances in mm.
        spacing_range: the smallest and the largest along each axis.
        intensities: percentiles 0.5, 50 and 99.5, mean and standard deviation of each channel, over the labelled
            voxels where there are any.
        cases_with: by label, in how many cases it occurs.
        volume_ml: by label, the median over these cases.
        scans: as ``intensities``, over all voxels.
        labelled: as ``intensities`` of the first channel, by label.
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


@dataclass(frozen=True)
class Geometry:
    """The grid of a network and how it goes down from it.

    Attributes:
        spacing: mm per voxel along right, anterior and superior.
        patch_size: voxels, a multiple of what the strides multiply to.
        strides: of each step down, per axis.
        kernels: of each resolution, one more than there are strides, per axis.
        whole: whether a patch holds the median scan.
    """

    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    whole: bool = False


def take_fingerprint(dataset: Dataset, cases: Sequence[Case], *, quiet: bool = False) -> Fingerprint:
    """Reads all training cases once.

    Args:
        dataset: that they are of.
        cases: to train on; what is held out has no say.
        quiet: no progress bar.

    Raises:
        FileError: when a file cannot be used, or a case has another number of channels than the first.
    """
    shapes, spacings, samples, scans = [], [], [], []
    inside: dict[str, list[np.ndarray]] = {name: [] for name in dataset.labels.names}
    volumes: dict[str, list[float]] = {name: [] for name in dataset.labels.names}
    for case in track(cases, "looking at the data", disable=quiet):
        with failing_as(case.images[0]):
            images = read_case_image(case)
            label = read_case_label(case, dataset, images[0])
        affine = nib.as_closest_canonical(images[0]).affine
        labels = dataset.labels.without_ignored(np.asarray(label.dataobj))
        shapes.append(nib.as_closest_canonical(images[0]).shape)
        spacings.append(nib.affines.voxel_sizes(affine))
        chosen = labels > 0 if labels.any() else np.ones(labels.shape, bool)
        samples.append([_sample(image, chosen) for image in images])
        scans.append([_sample(image, ...) for image in images])
        millilitres = voxel_millilitres(affine)
        for name, mask in dataset.labels.masks(labels):
            if count := int(mask.sum()):
                volumes[name].append(count * millilitres)
                inside[name].append(_sample(images[0], mask))
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
    )


def propose_geometry(
    fingerprint: Fingerprint,
    patch_voxels: int,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
) -> Geometry:
    """The working grid for a data set, after nnU-Net's rules (Isensee et al., Nature Methods 2021).

    The spacing is the median; along an axis three times coarser than the finest, the tenth part of the way from the
    smallest to it, so that thick slices are not made thicker. Where the median scan has no more voxels than a patch
    may have, a patch holds it; otherwise a patch has equal sides in mm, as far as the scans go. An axis is halved where
    its spacing is less than twice the finest one and it has 8 voxels or more, and a kernel spans it from there on.

    Args:
        fingerprint: of the training cases.
        patch_voxels: about how many a patch may have.
        spacing: mm, where it is decided already.
        patch_size: voxels, where it is decided already.
    """
    if spacing is None:
        median = np.array(fingerprint.spacing)
        smallest = np.array(fingerprint.spacing_range)[:, 0]
        coarse = median >= _COARSE * median.min()
        spacing = np.where(coarse, np.maximum(smallest + 0.1 * (median - smallest), median.min()), median).tolist()
    grid = np.array(fingerprint.shape) * fingerprint.spacing / np.array(spacing)
    whole = patch_size is None and bool(np.prod(grid) <= patch_voxels)
    wanted = _patch(grid, np.array(spacing), patch_voxels) if patch_size is None else np.array(patch_size, float)
    strides, kernels = _steps(wanted, np.array(spacing))
    multiple = np.prod(strides, axis=0, dtype=int) if strides else np.ones(3, int)
    if patch_size is None:
        wanted = np.maximum(1, (np.ceil if whole else np.round)(wanted / multiple)) * multiple
    return Geometry(
        spacing=tuple(float(round(one, 4)) for one in spacing),
        patch_size=tuple(int(size) for size in wanted),
        strides=strides,
        kernels=kernels,
        whole=whole,
    )


def _patch(grid: np.ndarray, spacing: np.ndarray, voxels: int) -> np.ndarray:
    """Voxels along each axis: the same extent in mm, and no more than the scans have."""
    fixed = np.zeros(3, bool)
    while True:
        volume = voxels * np.prod(spacing) / np.prod((grid * spacing)[fixed])
        extent = volume ** (1 / max(1, (~fixed).sum()))
        size = np.where(fixed, grid, extent / spacing)
        over = (size > grid) & ~fixed
        if not over.any():
            return size
        fixed |= over


def _steps(size: np.ndarray, spacing: np.ndarray) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides from one resolution to the next, and kernels of all of them."""
    size, spacing = size.copy(), spacing.copy()
    strides: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    while True:
        near = spacing < _NEAR_ISOTROPIC * spacing.min()
        kernels.append(tuple((3 if one else 1) for one in near))
        halved = near & (size >= 2 * _SMALLEST_MAP)
        if not halved.any():
            return tuple(strides), tuple(kernels)
        step = np.where(halved, 2, 1)
        strides.append(tuple(step.tolist()))
        size, spacing = size / step, spacing * step


def _sample(image: nib.Nifti1Image, chosen: Any) -> np.ndarray:
    """At most 10,000 of the chosen voxels, evenly."""
    values = np.asarray(image.dataobj)[chosen].ravel()
    return values[:: 1 + len(values) // 10_000].astype(np.float64)


def _summary(parts: Sequence[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(parts)
    low, middle, high = np.percentile(values, (0.5, 50, 99.5))
    return {
        "percentile_0.5": round(float(low), 4),
        "median": round(float(middle), 4),
        "percentile_99.5": round(float(high), 4),
        "mean": round(float(values.mean()), 4),
        "standard_deviation": round(float(values.std()), 4),
    }
