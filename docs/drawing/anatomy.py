"""A block of a real brain for the figures, and gates learnt on it.

The block is cut from the MNI152 T1 template that nilearn carries, at 2 mm. Sixteen fixed filters make channels of it; a
mechanism and a 1 x 1 x 1 convolution learn for a moment to tell CSF, grey and white matter apart. The figures show the
gates and weights after that: real ones, and no evidence of a benefit.
"""

import functools

import numpy as np
import torch
from nilearn import datasets
from scipy import ndimage

import attn3d
from attn3d.testing.subject import WithSignal

# Voxels of the template: x from near the midline to the side, y forward, z up.
START, SIZE = (43, 26, 25), (24, 54, 34)
MARGIN = 4  # around the block, so that no border of a convolution shows
SHOWN = (..., *[slice(MARGIN, -MARGIN)] * 3)


@functools.cache
def scan() -> tuple[np.ndarray, np.ndarray]:
    """The T1 in [0, 1] and the tissues (0 none, 1 CSF, 2 grey, 3 white) of the block and its margin."""
    image = datasets.load_mni152_template(resolution=2).get_fdata()
    grey = datasets.load_mni152_gm_template(resolution=2).get_fdata()
    white = datasets.load_mni152_wm_template(resolution=2).get_fdata()
    brain = datasets.load_mni152_brain_mask(resolution=2).get_fdata() > 0
    tissues = np.where(brain, 1 + np.argmax([1 - grey - white, grey, white], axis=0), 0)
    rows = [np.arange(-MARGIN, size + MARGIN) for size in SIZE]
    voxels = np.ix_(START[0] - rows[0], START[1] + rows[1], START[2] + rows[2])
    return (image / image.max())[voxels], tissues[voxels]


@functools.cache
def channels() -> torch.Tensor:
    """(1, 16, *S): the T1 through Gaussians, gradients, Laplacians and ranks of four extents, from 0, spread alike."""
    image, _ = scan()
    made = []
    for extent in (0.5, 1.0, 2.0, 3.0):
        made += [
            ndimage.gaussian_filter(image, extent),
            ndimage.gaussian_gradient_magnitude(image, extent),
            ndimage.gaussian_laplace(image, extent),
            ndimage.percentile_filter(image, 20, size=2 * int(2 * extent) + 1),
        ]
    x = torch.tensor(np.stack(made), dtype=torch.float32)[None]
    return (x - x.amin((2, 3, 4), keepdim=True)) / (4 * x.std((2, 3, 4), keepdim=True))


def learnt(name: str, *, iterations: int = 40, seed: int = 0, **options) -> torch.nn.Module:
    """The mechanism after a moment of training, on every third voxel."""
    torch.manual_seed(seed)
    thinned = (..., *[slice(None, None, 3)] * 3)
    x, target = channels()[thinned], torch.tensor(scan()[1])[thinned][None].long()
    mechanism = attn3d.create_attention(name, spatial_dims=3, channels=x.shape[1], **options)
    mechanism = WithSignal(mechanism) if getattr(mechanism, "takes_signal", False) else mechanism
    network = torch.nn.Sequential(mechanism, torch.nn.Conv3d(x.shape[1], 4, 1))
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.5)
    for _ in range(iterations):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    return mechanism.eval()


def seen(volume: torch.Tensor | np.ndarray) -> np.ndarray:
    """The block without its margin, as an array."""
    return np.asarray(torch.as_tensor(volume).detach())[SHOWN]


def index(voxel: tuple[int, int, int]) -> torch.Tensor:
    """The flat index of a voxel of the block in the volume with its margin, (1,)."""
    inner = tuple(place + MARGIN for place in voxel)
    return torch.tensor([np.ravel_multi_index(inner, scan()[0].shape)])
