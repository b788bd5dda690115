"""From a trained network and a scan to a label for each of the scan's voxels."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import nn

from attn3d.segmentation.data import normalise
from attn3d.segmentation.grid import from_grid, to_grid


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module, image: nib.Nifti1Image, spacing: Sequence[float], patch_size: Sequence[int]
) -> torch.Tensor:
    """The probability of each class at each voxel of a scan.

    Args:
        network: trained on the grid of ``spacing``; it is left in eval mode. It runs where its parameters are;
            the volume is put together on the CPU.
        image: from `read_image`, in any orientation and spacing.
        spacing: millimetres per voxel of the working grid.
        patch_size: voxels of the sliding window.

    Returns:
        (C, *image.shape), on the scan's own grid.
    """
    network.eval()
    volume = to_grid(image, spacing)
    logits = sliding_window_inference(
        normalise(volume.as_tensor())[None],
        roi_size=patch_size,
        sw_batch_size=2,
        predictor=network,
        overlap=0.5,
        mode="gaussian",
        sw_device=next(network.parameters()).device,
        device="cpu",
    )
    return from_grid(MetaTensor(logits[0].softmax(dim=0), affine=volume.affine), like=image)


def segment(
    network: nn.Module, image: nib.Nifti1Image, spacing: Sequence[float], patch_size: Sequence[int]
) -> np.ndarray:
    """The most probable class at each voxel, uint8, of the scan's shape; arguments as `predict_probabilities`."""
    return predict_probabilities(network, image, spacing, patch_size).argmax(dim=0).numpy().astype(np.uint8)
