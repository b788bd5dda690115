"""SimAM: Yang, Zhang, Li, Xie, PMLR 139 (ICML 2021).

Deviation: for a single voxel the variance is 0 and the gate is sigmoid(1/2); the authors' code divides by N - 1 = 0.
"""

import torch
from torch import Tensor

from attn3d.arguments import positive_numbers
from attn3d.capture import at_least_single
from attn3d.layers.blockwise import elementwise, runs_eagerly
from attn3d.layers.spatial import axes
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["SimAM"]


@register_attention("simam")
class SimAM(Mechanism):
    """Gates every channel and voxel by its distance from the mean of the channel. There are no parameters.

    y = x * sigmoid((x - m)^2 / (4 (v + lambda)) + 1/2), where m is the mean and v the variance of a channel over its N
    voxels, v = sum (x - m)^2 / (N - 1).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        regularization: lambda, positive; added to the variance.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). No parameters.

    Examples:
        >>> SimAM(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "https://proceedings.mlr.press/v139/yang21o.html"
    summary = "channels and voxels, by their distance from the mean"

    def __init__(self, spatial_dims: int, channels: int, *, regularization: float = 1e-4) -> None:
        super().__init__(spatial_dims, channels)
        (self.regularization,) = positive_numbers("regularization", regularization, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        mean, scale = _mean_and_scale(x, self.regularization)
        if runs_eagerly(x):
            return _gated_blockwise(x, mean, scale)
        return _gated(x, mean, scale)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gate as "gate"."""
        return {"gate": _weight(x, *_mean_and_scale(x, self.regularization))}


def _mean_and_scale(x: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """Returns m and 1 / (4 (v + lambda)), (B, C, 1, ..), in at least single precision."""
    x = at_least_single(x)
    count = 1
    for axis in axes(x):
        count = count * x.shape[axis]
    freedom = count - 1 + 1 // count  # 1 for a single voxel; without a branch, so that a capture is valid for all sizes
    variance = x.var(axes(x), correction=0, keepdim=True) * (count / freedom)
    return x.mean(axes(x), keepdim=True), 0.25 / (variance + regularization)


def _weight(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    distance = x - mean
    return torch.sigmoid(distance * distance * scale + 0.5)


def _gated(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x * _weight(x, mean, scale)).to(x.dtype)


@torch.jit.unused
def _gated_blockwise(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return elementwise(_gated, x, mean, scale)
