"""Segments a scan with trained networks, plane by plane.

The windows of a network slide along one axis of its working grid. Planes that no further window covers are finished:
their probabilities are resampled to the scan's grid, their labels are chosen, and the planes are released. Therefore
only the planes that a window spans are in memory, for any length of the scan, and more classes need little more memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn
from torch.nn import functional

from attn3d.segmentation.grid import along, resampled_planes
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.portable import Windows, to_channels

_ON_A_CPU, _ON_A_GPU = 1, 4  # windows in a batch
_PLANES = 8  # planes of a window that are added at once
_FURTHEST = 1e4  # the largest distance of a logit from 0, or from the highest one; the limit of float16 is 65504


class Segmentation(NamedTuple):
    """The predictions for the voxels of a scan.

    Attributes:
        labels: uint8 values, of the shape of the scan.
        probabilities: float32, (*shape, channels), or None.
        uncertainty: maps by name, float32 of the shape of the scan: "entropy", and with several networks "spread".
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    uncertainty: dict[str, np.ndarray]


class NetworkInput(NamedTuple):
    """A network and a scan on its working grid.

    Attributes:
        network: (B, C, *patch) to logits (B, channels, *patch); it is left in evaluation mode and runs where its
            parameters are.
        volume: intensities on its working grid, (images, *S).
        patch_size: voxels of the sliding window, as in training; a smaller volume is extended by its edges.
        labels: the labels of the output channels.
        windows: level and width in HU of each input channel of a CT; None for other scans.
    """

    network: nn.Module
    volume: MetaTensor
    patch_size: Sequence[int]
    labels: Labels
    windows: Windows = None


def segment(
    inputs: Sequence[NetworkInput],
    like: nib.Nifti1Image,
    *,
    overlap: float = 0.5,
    mirror: Sequence[int] = (),
    keep: bool = False,
    uncertainty: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Segmentation:
    """Segments a scan by the mean probabilities of one or more networks, and computes the uncertainty of each voxel.

    Args:
        inputs: the networks, with the scan on the grid of each. They have the same labels; their grids may differ.
        like: the scan.
        overlap: overlap of neighbouring windows, as a fraction of their size.
        mirror: axes of the working grid; logits are averaged over windows mirrored along every combination of them.
        keep: whether to return the probabilities.
        uncertainty: whether to return the maps of uncertainty, which `attn3d.segmentation.predict` defines.
        progress: called with the fraction of the planes that are finished.

    Raises:
        ValueError: when a volume, or the output of a network, is not finite.
    """
    first = inputs[0]
    axis = min(range(3), key=lambda one: first.patch_size[one] / first.volume.shape[1 + one])
    scan_axis = along(axis, first.volume.affine.numpy(), like.affine)
    planes_of = [probability_planes(one, axis, overlap=overlap, mirror=mirror) for one in inputs]
    streams = [
        resampled_planes(planes, one.volume.affine.numpy(), one.volume.shape[1:], like.affine, like.shape, axis)
        for one, planes in zip(inputs, planes_of, strict=True)
    ]
    shape = [like.shape[scan_axis], *(size for one, size in enumerate(like.shape) if one != scan_axis)]
    chosen = np.empty(shape, np.uint8)
    kept = np.empty((*shape, len(first.labels.channels)), np.float32) if keep else None
    measures = measures_of(len(inputs)) if uncertainty else ()
    uncertain = {name: np.empty(shape, np.float32) for name in measures}
    for done, found in enumerate(zip(*streams, strict=True)):
        if progress is not None:
            progress(done / len(chosen))
        index, planes = found[0][0], [plane for _, plane in found]
        mean = sum(planes) / len(planes)
        chosen[index] = first.labels.choose(mean)
        if kept is not None:
            kept[index] = mean.permute(1, 2, 0)
        for name, values in uncertain.items():
            values[index] = _entropy(mean, first.labels) if name == "entropy" else _spread(planes, mean, first.labels)
    return Segmentation(
        np.moveaxis(chosen, 0, scan_axis),
        None if kept is None else np.moveaxis(kept, 0, scan_axis),
        {name: np.moveaxis(values, 0, scan_axis) for name, values in uncertain.items()},
    )


def measures_of(networks: int) -> tuple[str, ...]:
    """The measures of uncertainty for a number of networks."""
    return ("entropy", "spread") if networks > 1 else ("entropy",)


def highest_entropy(labels: Labels) -> float:
    """The upper bound of the entropy in nats."""
    return len(labels.names) * math.log(2) if labels.regions else math.log(len(labels.channels))


def _entropy(mean: Tensor, labels: Labels) -> Tensor:
    """The entropy of a plane of probabilities (channels, *rest), clamped to its range against rounding."""
    classes = torch.cat([mean, 1 - mean]) if labels.regions else mean
    return torch.special.entr(classes).sum(dim=0).clamp_(0, highest_entropy(labels))


def _spread(planes: Sequence[Tensor], mean: Tensor, labels: Labels) -> Tensor:
    """The spread of the most probable class, or the largest one of the regions, over the planes of several networks."""
    if not labels.regions:
        chosen = mean.max(dim=0, keepdim=True).indices
        planes = [plane.gather(0, chosen) for plane in planes]
    return torch.stack([*planes]).std(dim=0, correction=0).amax(dim=0)


@torch.inference_mode()
def probability_planes(
    given: NetworkInput, axis: int, *, overlap: float = 0.5, mirror: Sequence[int] = ()
) -> Iterator[Tensor]:
    """The probabilities of the labels on the working grid, (channels, *rest), plane by plane along an axis.

    Logits of windows are averaged with Gaussian weights, as in `monai.inferers.sliding_window_inference`. The logits of
    labels are summed relative to the highest logit of their voxel. This does not change probabilities, and the values
    are in the range of float16. The sums are float16, or float32 if windows overlap by more than half, since sums over
    many windows are rounded more, or leave the range of float16; then they need twice the memory.

    Args:
        given: the network and the scan.
        axis: the axis of the working grid that is perpendicular to the planes.
        overlap: as in `segment`.
        mirror: as in `segment`.

    Raises:
        ValueError: as `segment`.
    """
    network, volume, patch_size = given.network.eval(), given.volume.as_tensor(), tuple(given.patch_size)
    if not volume.isfinite().all():
        raise ValueError(f"`volume` must be finite, got {int((~volume.isfinite()).sum())} voxels that are not")
    device = next(network.parameters()).device
    kind = torch.float16 if overlap <= 0.5 else torch.float32
    together = _ON_A_CPU if device.type == "cpu" else _ON_A_GPU
    volume, inside = _padded(volume, patch_size)
    shown = range(inside[axis].start, inside[axis].stop)
    rest = [one for one in range(3) if one != axis]
    weight = compute_importance_map(patch_size, mode="gaussian", device=device).movedim(axis, 0)
    rows = _rows_of_windows(volume.shape[1:], patch_size, overlap, axis)
    # The sums are those of the planes that a row of windows spans, (planes, channels, *rest).
    spanned, area = patch_size[axis], [volume.shape[1 + one] for one in rest]
    total, weights = torch.empty(0), torch.zeros(spanned, *area, device=device)
    for start, following in pairwise([*rows, max(rows) + spanned]):
        row = rows[start]
        for first in range(0, len(row), together):
            some = row[first : first + together]
            patches = torch.stack([volume[:, *window] for window in some]).to(device)
            logits = _logits(network, to_channels(patches, given.windows), mirror)
            if not total.numel():  # not earlier, to leave the first run of the network the memory
                total = torch.zeros(spanned, logits.shape[1], *area, dtype=kind, device=device)
            for window, values in zip(some, logits, strict=True):
                part = [window[one] for one in rest]
                _add(total[:, :, *part], values.movedim(1 + axis, 0), weight, given.labels.regions)
                weights[:, *part] += weight
            del logits, values  # before the network runs again
        done = following - start  # planes that no further window covers
        for index in range(done):
            if start + index in shown:
                plane = given.labels.probabilities(total[index] / weights[index])
                plane = plane[:, inside[rest[0]], inside[rest[1]]]
                if not plane.isfinite().all():
                    raise ValueError(
                        "`network` gives values that are not finite for this volume; check its voxels and the weights"
                    )
                yield plane.cpu()
        _drop(total, done)
        _drop(weights, done)


def _rows_of_windows(
    shape: Sequence[int], patch_size: Sequence[int], overlap: float, axis: int
) -> dict[int, list[tuple[slice, ...]]]:
    """The windows over a volume by their first plane along an axis, in ascending order."""
    steps = [max(1, int(patch * (1 - overlap))) for patch in patch_size]
    rows: dict[int, list[tuple[slice, ...]]] = {}
    for window in dense_patch_slices(shape, patch_size, steps):
        rows.setdefault(window[axis].start, []).append(window)
    return dict(sorted(rows.items()))


def _drop(sums: Tensor, planes: int) -> None:
    """Drops the first planes of sums: the others take their place, one by one without a copy of all, and then zeros."""
    remaining = len(sums) - planes
    for index in range(remaining):
        sums[index] = sums[index + planes]
    sums[remaining:] = 0


def _padded(volume: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """A volume extended by its edges to at least the size of a patch, and the slices of the volume in it."""
    missing = [max(0, patch - one) for patch, one in zip(patch_size, volume.shape[1:], strict=True)]
    inside = [slice(one // 2, one // 2 + size) for one, size in zip(missing, volume.shape[1:], strict=True)]
    if any(missing):
        widths = [width for one in reversed(missing) for width in (one // 2, one - one // 2)]
        volume = functional.pad(volume, widths, mode="replicate")
    return volume, inside


def _logits(network: nn.Module, patches: Tensor, mirror: Sequence[int]) -> Tensor:
    """The mean logits over all combinations of mirrored axes."""
    found = network(patches).float()
    for count in range(1, 1 + len(mirror)):
        for axes in combinations([2 + axis for axis in mirror], count):
            found = found + network(patches.flip(axes)).flip(axes)
    return found / 2 ** len(mirror) if mirror else found


def _add(total: Tensor, logits: Tensor, weight: Tensor, regions: bool) -> None:
    """Adds weighted logits (planes, channels, *rest) to their sums, few planes at a time, so that copies are small."""
    for sums, new, factor in zip(*(one.split(_PLANES) for one in (total, logits, weight.unsqueeze(1))), strict=True):
        # Rounded first, because PyTorch adds two dtypes by two temporary copies in the larger one.
        sums += _in_range(new, regions).mul_(factor).to(sums.dtype)


def _in_range(logits: Tensor, regions: bool) -> Tensor:
    """A copy of logits (B, channels, *S) in the range of float16.

    Logits of labels are relative to the highest of each voxel; those of regions are clamped. Infinite logits become
    NaN, for which `probability_planes` raises an error, except -inf of some of the labels, whose probability is 0.
    """
    found = logits.masked_fill(logits.isinf(), math.nan) if regions else logits - logits.amax(dim=1, keepdim=True)
    return found.clamp_(-_FURTHEST, _FURTHEST)
