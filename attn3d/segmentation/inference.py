"""From trained networks and a scan to a label for each of the scan's voxels, a plane at a time.

The windows of a network slide along one axis of its working grid. Behind them planes are finished: their probabilities
are brought to the scan's grid and their labels chosen, and nothing of them is kept. So memory is that of the planes
that a window spans, whatever the length of the scan, and classes cost next to nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
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
from attn3d.segmentation.portable import to_channels

_FURTHEST = 1e4  # of a logit from 0, or from the highest; float16 ends at 65504


class View(NamedTuple):
    """A scan as a network sees it.

    Attributes:
        network: (B, C, *patch) to logits (B, channels, *patch); it is left in evaluation mode and runs where its
            parameters are.
        volume: intensities on its working grid, (images, *S).
        patch_size: voxels of the sliding window, as in training; a smaller volume is extended by its edges.
        labels: that the network's channels stand for.
        windows: of a CT, in which the network sees it.
    """

    network: nn.Module
    volume: MetaTensor
    patch_size: Sequence[int]
    labels: Labels
    windows: Sequence[Sequence[float]] | None = None


def segment(
    views: Sequence[View], like: nib.Nifti1Image, *, overlap: float = 0.5, mirrored: bool = False, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label that the mean probabilities give each voxel of a scan, as `Labels` chooses it.

    Args:
        views: of the scan, by one or more networks of the same labels, each on its own grid.
        like: the scan.
        overlap: of neighbouring windows, a part of their size.
        mirrored: whether logits are averaged with those of windows with left and right exchanged.
        keep: whether the probabilities are returned as well.

    Returns:
        uint8 label values of the scan's shape, and float32 probabilities (*shape, channels) or None.

    Raises:
        ValueError: when a volume, or what a network makes of it, is not finite.
    """
    first = views[0]
    axis = min(range(3), key=lambda one: first.patch_size[one] / first.volume.shape[1 + one])
    scan_axis = along(axis, first.volume.affine.numpy(), like.affine)
    streams = [
        resampled_planes(
            probability_planes(view, axis, overlap=overlap, mirrored=mirrored),
            *(view.volume.affine.numpy(), view.volume.shape[1:]),
            *(like.affine, like.shape),
            axis,
        )
        for view in views
    ]
    shape = [like.shape[scan_axis], *(size for one, size in enumerate(like.shape) if one != scan_axis)]
    segmentation = np.empty(shape, np.uint8)
    kept = None
    for found in zip(*streams, strict=True):
        index, mean = found[0][0], sum(plane for _, plane in found) / len(found)
        segmentation[index] = first.labels.choose(mean)
        if keep:
            kept = np.empty((*shape, len(mean)), np.float32) if kept is None else kept
            kept[index] = mean.permute(1, 2, 0)
    return np.moveaxis(segmentation, 0, scan_axis), None if kept is None else np.moveaxis(kept, 0, scan_axis)


@torch.inference_mode()
def probability_planes(view: View, axis: int, *, overlap: float = 0.5, mirrored: bool = False) -> Iterator[Tensor]:
    """The probabilities of the labels on the working grid, (channels, *rest), plane by plane along an axis.

    Logits of windows are averaged with Gaussian weights, as `monai.inferers.sliding_window_inference` does it. What is
    summed is each logit's distance to the highest of its voxel, or to 0 where channels are regions, which changes no
    probability and which float16 holds.

    Args:
        view: of the scan.
        axis: of the working grid that the planes follow each other along.
        overlap: as in `segment`.
        mirrored: as in `segment`.

    Raises:
        ValueError: as `segment`.
    """
    network, volume, patch_size = view.network.eval(), view.volume.as_tensor(), tuple(view.patch_size)
    if not volume.isfinite().all():
        raise ValueError(f"`volume` must be finite, got {int((~volume.isfinite()).sum())} voxels that are not")
    device = next(network.parameters()).device
    together = 1 if device.type == "cpu" else 4
    volume, inside = _padded(volume, patch_size)
    size = volume.shape[1:]
    steps = [max(1, int(patch * (1 - overlap))) for patch in patch_size]
    windows = sorted(dense_patch_slices(size, patch_size, steps), key=lambda window: window[axis].start)
    weight = compute_importance_map(patch_size, mode="gaussian", device=device)
    rest = [one for one in range(3) if one != axis]
    rows = [list(row) for _, row in groupby(windows, key=lambda window: window[axis].start)]
    planes = (patch_size[axis], *(size[one] for one in rest))
    total, weights = torch.empty(0), torch.zeros(planes, device=device)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        start = row[0][axis].start
        for first in range(0, len(row), together):
            some = row[first : first + together]
            patches = torch.stack([volume[:, *one] for one in some]).to(device)
            logits = _logits(view, to_channels(patches, view.windows), mirrored)
            if not total.numel():
                total = torch.zeros(planes[0], logits.shape[1], *planes[1:], dtype=torch.float16, device=device)
            for window, values in zip(some, logits, strict=True):
                part = [window[one] for one in rest]
                total[:, :, *part] += values.mul_(weight).movedim(1 + axis, 0)
                weights[:, *part] += weight.movedim(axis, 0)
        finished = patch_size[axis] if following is None else following[0][axis].start - start
        for index in range(finished):
            if start + index in range(size[axis])[inside[axis]]:
                plane = view.labels.probabilities(total[index] / weights[index])
                plane = plane[:, inside[rest[0]], inside[rest[1]]]
                if not plane.isfinite().all():
                    raise ValueError(
                        "`network` gives values that are not finite for this volume; look at its voxels and weights"
                    )
                yield plane.cpu()
        for sums in (total, weights):
            for index in range(patch_size[axis]):
                sums[index] = sums[index + finished] if index + finished < patch_size[axis] else 0


def _padded(volume: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """A volume extended by its edges to the size of a patch at least, and where it lies in it."""
    missing = [max(0, patch - one) for patch, one in zip(patch_size, volume.shape[1:], strict=True)]
    inside = [slice(one // 2, one // 2 + size) for one, size in zip(missing, volume.shape[1:], strict=True)]
    if any(missing):
        widths = [width for one in reversed(missing) for width in (one // 2, one - one // 2)]
        volume = functional.pad(volume, widths, mode="replicate")
    return volume, inside


def _logits(view: View, patches: Tensor, mirrored: bool) -> Tensor:
    """What float16 holds of logits: how far each label is below the most probable one, or how far a region is from 0.

    An infinite logit becomes NaN, so that it is found.
    """
    found = view.network(patches)
    if mirrored:
        found = (found + view.network(patches.flip(2)).flip(2)) / 2
    origin = 0 * found if view.labels.regions else found.amax(dim=1, keepdim=True)
    return (found - origin).float().clamp_(-_FURTHEST, _FURTHEST)
