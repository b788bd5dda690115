"""Concurrent spatial and channel squeeze-and-excitation: Roy, Navab, Wachinger, arXiv 1803.02579.

Deviation: the journal's version (arXiv 1808.08127) compares four ways to join the two and finds the maximum best; it is
the default here, where the first version adds.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.capture import takes_python_operators
from attn3d.layers.conv import convolution
from attn3d.layers.gating import weighted_sum
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["SCSE"]


@register_attention("scse")
class SCSE(Mechanism):
    """x gated by channel and x gated by voxel, side by side, and of both the larger or the sum.

    c = sigmoid(W2 relu(W1 mean(x))), W1: C -> h, W2: h -> C, with biases, h = max(C // reduction, min(C, 4));
    s = sigmoid(w x + b), C -> 1, at every voxel; "max": y = max(x * c, x * s); "sum": y = x * c + x * s.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        reduction: C over the hidden width h, which is at least min(C, 4).
        mode: how both are joined, "max" or "sum".
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h + C + h + C + 1.

    Example:
        >>> SCSE(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1803.02579"
    summary = "channels and voxels, side by side"

    def __init__(
        self, spatial_dims: int, channels: int, *, reduction: int = 2, mode: str = "max", variant: str = "compact"
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        self.mode = one_of("mode", mode, ("max", "sum"))
        hidden = hidden_width(channels, reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.score = convolution(spatial_dims)(channels, 1, 1)

    def channel_gate(self, x: Tensor) -> Tensor:
        """c, (B, C, 1, ..)."""
        hidden = torch.relu(self.squeeze(mean(x, axes(x))))
        return broadcast_gate(torch.sigmoid(self.excite(hidden)), x)

    def spatial_gate(self, x: Tensor) -> Tensor:
        """s, (B, 1, *S)."""
        return torch.sigmoid(self.score(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        channel, spatial = self.channel_gate(x), self.spatial_gate(x)
        if self.mode == "sum":
            return weighted_sum([x, x], [channel, spatial])
        if not torch.jit.is_scripting():
            if takes_python_operators(x):
                return _LargerProduct.apply(x, channel, spatial).to(x.dtype)
        return torch.maximum(x * channel, x * spatial).to(x.dtype)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """The gates as "channel" and "spatial"."""
        return {"channel": self.channel_gate(x), "spatial": self.spatial_gate(x)}


class _LargerProduct(torch.autograd.Function):
    """max(x * a, x * b), keeping x and the gates alone for backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(x * a, x * b)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a, b = context.saved_tensors
        share = ((x * (a - b)).sign() + 1) / 2  # of a; where both are the same, each has half
        grad_product = grad_y * x
        grad_a = (grad_product * share).sum_to_size(a.shape).to(a.dtype)
        grad_b = (grad_product * (1 - share)).sum_to_size(b.shape).to(b.dtype)
        return (grad_y * (share * a + (1 - share) * b)).to(x.dtype), grad_a, grad_b
