"""SimAM: Yang, Zhang, Li, Xie, PMLR 139 (ICML 2021).

Deviations: the variance divides by N - 1, as in the authors' code, where equation 5 divides by N. For a single voxel
the variance is 0 and the gate is sigmoid(1/2); the authors' code divides by 0.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from attn3d.arguments import positive_numbers
from attn3d.capture import is_batched
from attn3d.layers.blockwise import blocks, blockwise, gradients, runs_eagerly
from attn3d.layers.pooling import count
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
        if not torch.jit.is_scripting() and runs_eagerly(x):
            return _SimAM.apply(x, self.regularization)
        return _simam(x, self.regularization)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gate as "gate"."""
        self.check_input(x)
        return {"gate": _weight(x, *_mean_and_scale(x, self.regularization))}


class _SimAM(torch.autograd.Function):
    """Equals `_simam`. It saves only x, and its gradient is written out, in fewer operators than autograd records."""

    @staticmethod
    def forward(x: Tensor, regularization: float) -> Tensor:
        mean, scale = _mean_and_scale_blockwise(x, regularization)
        return blockwise(_gated, [x, mean, scale], [x])[0]

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, context.regularization = inputs
        context.save_for_backward(x)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (x,) = context.saved_tensors
        if torch.is_grad_enabled() or is_batched(grad_y):
            (grad_x,) = gradients(partial(_simam, regularization=context.regularization), grad_y, x)
            return grad_x, None
        mean, scale = _mean_and_scale_blockwise(x, context.regularization)
        grad_x, grad_mean, grad_scale = blockwise(_gradients, [x, mean, scale, grad_y], [x, mean, scale])
        # Through m = sum x / N and scale = 1 / (4 (sum (x - m)^2 / freedom + lambda)).
        shift, slope = grad_mean / count(x, axes(x)), grad_scale * scale.square() * (-8.0 / _freedom(x))
        for x_part, mean_part, shift_part, slope_part, grad_x_part in blocks([x, mean, shift, slope, grad_x]):
            grad_x_part.add_((x_part - mean_part).mul_(slope_part).add_(shift_part))
        return grad_x, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, regularization: float) -> tuple[Tensor, int]:
        return torch.vmap(_simam, in_dims)(x, regularization), 0


def _mean_and_scale_blockwise(x: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    mean = _mean(x)
    (squares,) = blockwise(_square, [x, mean], [mean])
    return mean, _scale(x, squares, regularization)


def _gradients(x: Tensor, mean: Tensor, scale: Tensor, grad_y: Tensor) -> list[Tensor]:
    """Returns the gradients of `_gated` with respect to x, m and the scale."""
    distance = x - mean
    weight = torch.sigmoid(distance.square().mul_(scale).add_(0.5))
    grad_x = grad_y * weight
    grad_logit = weight.neg_().add_(1.0).mul_(grad_x).mul_(x)  # the derivative of the sigmoid a is a (1 - a)
    grad_scale = distance.square().mul_(grad_logit)
    grad_distance = distance.mul_(grad_logit).mul_(2.0 * scale)
    return [grad_x.add_(grad_distance), grad_distance.neg_(), grad_scale]


def _simam(x: Tensor, regularization: float) -> Tensor:
    mean, scale = _mean_and_scale(x, regularization)
    return _gated(x, mean, scale)


def _mean_and_scale(x: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """Returns m and 1 / (4 (v + lambda)), (B, C, 1, ..), in at least single precision."""
    mean = _mean(x)
    return mean, _scale(x, _square(x, mean).sum(axes(x), keepdim=True), regularization)


def _gated(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x * _weight(x, mean, scale)).to(x.dtype)


def _weight(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return torch.sigmoid(_square(x, mean) * scale + 0.5)


def _square(x: Tensor, mean: Tensor) -> Tensor:
    return (x - mean).square()


def _mean(x: Tensor) -> Tensor:
    """Returns m, (B, C, 1, ..), in at least single precision."""
    return x.mean(axes(x), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def _scale(x: Tensor, squares: Tensor, regularization: float) -> Tensor:
    """Returns 1 / (4 (v + lambda)) from the sum of (x - m)^2."""
    return 0.25 / (squares / _freedom(x) + regularization)


def _freedom(x: Tensor) -> int:
    """Returns N - 1, or 1 for a single voxel; without a branch, so that a capture is valid for all sizes."""
    voxels = count(x, axes(x))
    return voxels - 1 + 1 // voxels
