"""Concurrent spatial and channel squeeze-and-excitation: Roy, Navab, Wachinger, arXiv 1803.02579.

Deviation: the default combines the two by their maximum, the best of the four ways that the journal version (arXiv
1808.08127) compares. The first version adds them.
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.layers.conv import pointwise_convolution
from attn3d.layers.gating import larger_product, weighted_sum
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["SCSE"]


@register_attention("scse")
class SCSE(Mechanism):
    """Gates x by channel and by voxel in parallel, and combines both by their maximum or sum.

    c = sigmoid(W2 relu(W1 mean(x))), W1: C -> h, W2: h -> C, with biases, h = max(C // reduction, min(C, 4));
    s = sigmoid(w x + b), w: C -> 1, at every voxel; "max": y = max(x * c, x * s); "sum": y = x * c + x * s.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4).
        mode: how both are combined, "max" or "sum".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h + C + h + C + 1.

    Examples:
        >>> SCSE(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1803.02579"
    summary = "channels and voxels, in parallel"

    def __init__(self, spatial_dims: int, channels: int, *, reduction: int = 2, mode: str = "max") -> None:
        super().__init__(spatial_dims, channels)
        self.mode = one_of("mode", mode, ("max", "sum"))
        hidden = hidden_width(channels, reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.score = pointwise_convolution(spatial_dims)(channels, 1, 1)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Returns c, (B, C, 1, ..)."""
        hidden = torch.relu(self.squeeze(mean(x, axes(x))))
        return broadcast_gate(torch.sigmoid(self.excite(hidden)), x)

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Returns s, (B, 1, *S)."""
        return torch.sigmoid(self.score(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        channel, spatial = self.channel_gate(x), self.spatial_gate(x)
        if self.mode == "sum":
            return weighted_sum([x, x], [channel, spatial])
        return larger_product(x, channel, spatial)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gates as "channel" and "spatial"."""
        self.check_input(x)
        return {"channel": self.channel_gate(x), "spatial": self.spatial_gate(x)}
