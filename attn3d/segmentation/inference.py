"""From a trained network and a scan to a label for each of the scan's voxels."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from attn3d.segmentation.grid import from_grid, to_grid
from attn3d.segmentation.preprocessing import normalise


@torch.inference_mode()
def grid_probabilities(
    network: nn.Module, volume: MetaTensor, patch_size: Sequence[int], *, mirrored: bool = False
) -> MetaTensor:
    """The probability of each class on the working grid, (classes, *S).

    Args:
        network: it is left in evaluation mode. It runs where its parameters are; the volume is put together on the
            CPU, so that its size is bounded by the memory of the machine and not of the device.
        volume: what the network sees, (C, *S), as it was trained on.
        patch_size: voxels of the sliding window; a smaller volume is extended by its edges.
        mirrored: whether it is averaged with what is found in the volume with left and right exchanged.

    Raises:
        ValueError: when the volume, or what the network makes of it, is not finite.
    """
    if not volume.isfinite().all():
        raise ValueError(f"`volume` must be finite, got {int((~volume.isfinite()).sum())} voxels that are not")
    network.eval()
    total: Tensor | float = 0.0
    for axes in [(), (2,)] if mirrored else [()]:
        logits = sliding_window_inference(
            volume.as_tensor()[None].flip(axes),
            roi_size=patch_size,
            sw_batch_size=2,
            predictor=network,
            overlap=0.5,
            mode="gaussian",
            padding_mode="replicate",
            sw_device=next(network.parameters()).device,
            device="cpu",
        )
        total = total + logits.flip(axes)[0].softmax(dim=0)
    if not total.isfinite().all():
        raise ValueError("`network` gives values that are not finite for this volume; look at its voxels and weights")
    return MetaTensor(total / 2 if mirrored else total, affine=volume.affine)


def predict_probabilities(
    network: nn.Module, image: nib.Nifti1Image, spacing: Sequence[float], patch_size: Sequence[int]
) -> torch.Tensor:
    """The probability of each class at each voxel of a scan that is shown with mean 0 and standard deviation 1.

    Args:
        network: trained on the grid of ``spacing``, see `grid_probabilities`.
        image: from `read_image`, in any orientation and spacing.
        spacing: millimetres per voxel of the working grid.
        patch_size: voxels of the sliding window.

    Returns:
        (C, *image.shape), on the scan's own grid.
    """
    volume = to_grid(image, spacing)
    volume = MetaTensor(normalise(volume.as_tensor()), affine=volume.affine)
    return from_grid(grid_probabilities(network, volume, patch_size), like=image)


def segment(
    network: nn.Module, image: nib.Nifti1Image, spacing: Sequence[float], patch_size: Sequence[int]
) -> np.ndarray:
    """The most probable class at each voxel, uint8, of the scan's shape; arguments as `predict_probabilities`."""
    return predict_probabilities(network, image, spacing, patch_size).argmax(dim=0).numpy().astype(np.uint8)


def most_probable(
    volumes: Sequence[MetaTensor], like: nib.Nifti1Image, *, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The class with the highest mean probability at each voxel of a scan.

    Class by class, so that only one is there on the scan's grid at a time, unless all are to be kept.

    Args:
        volumes: from `grid_probabilities`, of one or more networks, each on its own grid.
        like: the scan.
        keep: whether the probabilities are returned as well.

    Returns:
        uint8 classes of the scan's shape, and float32 probabilities (*shape, classes) or None.
    """
    classes = np.zeros(like.shape, np.uint8)
    highest = np.full(like.shape, -1.0, np.float32)
    kept = []
    for index in range(len(volumes[0])):
        parts = [from_grid(MetaTensor(one.as_tensor()[index][None], affine=one.affine), like)[0] for one in volumes]
        mean = (sum(parts) / len(parts)).numpy()
        classes[mean > highest] = index
        np.maximum(highest, mean, out=highest)
        if keep:
            kept.append(mean)
    return classes, np.stack(kept, axis=-1) if keep else None
