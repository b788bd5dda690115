"""SimAM: Yang, Zhang, Li, Xie, PMLR 139 (ICML 2021).

Deviation: of a single voxel the variance, a sum over N - 1, is 0 and the gate sigmoid(1/2); the authors' code divides
by 0 there.
"""

from typing import Any

import torch
from torch import Tensor

from attn3d.capture import at_least_single, takes_python_operators
from attn3d.layers.spatial import axes
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["SimAM"]


@register_attention("simam")
class SimAM(Mechanism):
    """A gate per channel and voxel, from how far the voxel is from the mean of its channel; without parameters.

    y = x * sigmoid((x - m)^2 / (4 (v + lambda)) + 1/2), m the mean and v the variance of a channel over its N voxels,
    v = sum (x - m)^2 / (N - 1).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        regularization: lambda, positive: the least variance that counts.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). No parameters.

    Examples:
        >>> SimAM(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "https://proceedings.mlr.press/v139/yang21o.html"
    summary = "channels and voxels, by their distance from the mean"

    def __init__(
        self, spatial_dims: int, channels: int, *, regularization: float = 1e-4, variant: str = "compact"
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        if not isinstance(regularization, float | int) or isinstance(regularization, bool):
            raise TypeError(f"`regularization` must be a number, got {regularization!r}")
        if regularization <= 0:
            raise ValueError(f"`regularization` must be positive, got {regularization}")
        self.regularization = float(regularization)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        if not torch.jit.is_scripting():
            if takes_python_operators(x):
                return _DistanceGate.apply(x, self.regularization)
        return (x * _gate(x, self.regularization)).to(x.dtype)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """The gate as "gate"."""
        return {"gate": _gate(x, self.regularization)}


def _gate(x: Tensor, regularization: float) -> Tensor:
    """sigmoid((x - m)^2 / (4 (v + lambda)) + 1/2), in at least single precision."""
    distance, scale = _distance_and_scale(x, regularization)
    return torch.sigmoid(distance * distance * scale + 0.5)


def _distance_and_scale(x: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """x - m, and 1 / (4 (v + lambda))."""
    x = at_least_single(x)
    distance = x - x.mean(axes(x), keepdim=True)
    variance = (distance * distance).sum(axes(x), keepdim=True) / _freedom(x)
    return distance, 0.25 / (variance + regularization)


def _freedom(x: Tensor) -> int:
    """N - 1, or 1 of a single voxel; without a condition, so that a capture holds for every size."""
    count = 1
    for axis in axes(x):
        count = count * x.shape[axis]
    return count - 1 + 1 // count


class _DistanceGate(torch.autograd.Function):
    """x times its gate, keeping x alone for backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, regularization: float) -> Tensor:
        distance, scale = _distance_and_scale(x, regularization)
        return distance.square_().mul_(scale).add_(0.5).sigmoid_().mul_(x).to(x.dtype)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, context.regularization = inputs
        context.save_for_backward(x)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (x,) = context.saved_tensors
        distance, scale = _distance_and_scale(x, context.regularization)
        weight = torch.sigmoid(distance * distance * scale + 0.5)
        grad_power = grad_y * x * weight * (1 - weight)  # of what the sigmoid is taken of
        grad_scale = (grad_power * distance * distance).sum(axes(x), keepdim=True)
        # By the distance itself, and by the variance in the scale; that of the mean is taken off.
        grad_distance = 2 * distance * (grad_power * scale - 4 * scale * scale * grad_scale / _freedom(x))
        return (grad_y * weight + grad_distance - grad_distance.mean(axes(x), keepdim=True)).to(x.dtype), None
