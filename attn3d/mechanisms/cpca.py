"""Channel prior convolutional attention: Huang, Chen, Zou, Lu, Chen, arXiv 2306.05196.

Deviation: the paper is 2-D. As in the authors' code, one pointwise layer is used in three places, and the channel gate
is the sum of two sigmoids, in (0, 2).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.layers.conv import along_axis, convolution, depthwise
from attn3d.layers.gating import gate
from attn3d.layers.pooling import mean_and_maximum
from attn3d.layers.spatial import axes, broadcast_gate, keep_format
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["CPCA"]

_STRIPS = (7, 11, 21)


@register_attention("cpca")
class CPCA(Mechanism):
    """Gates every channel, then weighs every channel and voxel by depthwise strip convolutions of several lengths.

    x1 = gelu(W x); x2 = x1 * (sigmoid(MLP(mean(x1))) + sigmoid(MLP(max(x1)))), MLP = W2 relu(W1 .), W1: C -> h,
    h = max(C // reduction, min(C, 4)), with biases; s = dw_5(x2), t = s + sum_k strips_k(s), k = 7, 11, 21, where
    strips_k are depthwise convolutions with kernel size k along one axis after the other, the last axis first;
    y = W((W t) * x2). All W: C -> C are the same layer.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4).

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters C^2 + C + 2 C h + C + h + C (5^n + 1) + 42 n C.

    Examples:
        >>> CPCA(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2306.05196"
    summary = "channels, then channels and voxels by strip convolutions"

    def __init__(self, spatial_dims: int, channels: int, *, reduction: int = 4) -> None:
        super().__init__(spatial_dims, channels)
        hidden = hidden_width(channels, reduction)
        self.pointwise = convolution(spatial_dims)(channels, channels, 1)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.local = depthwise(channels, [5] * spatial_dims)
        self.strips = nn.ModuleList()
        for size in _STRIPS:
            lines = [along_axis(axis, [size] * spatial_dims) for axis in reversed(range(spatial_dims))]
            self.strips.append(nn.Sequential(*(depthwise(channels, line) for line in lines)))

    def channel_gate(self, x: Tensor) -> Tensor:
        """Returns sigmoid(MLP(mean(x))) + sigmoid(MLP(max(x))), (B, C, 1, ..)."""
        mean, largest = mean_and_maximum(x, axes(x))
        of_mean = self.excite(torch.relu(self.squeeze(mean.flatten(1))))
        of_largest = self.excite(torch.relu(self.squeeze(largest.flatten(1))))
        return broadcast_gate(torch.sigmoid(of_mean) + torch.sigmoid(of_largest), x)

    def spatial_weights(self, x: Tensor) -> Tensor:
        """Returns W t, (B, C, *S)."""
        local = self.local(x)
        total = local
        for strip in self.strips:
            total = total + strip(local)
        return self.pointwise(total)

    def forward(self, x: Tensor) -> Tensor:
        """Weighs (B, C, *S)."""
        self.check_input(x)
        inner = functional.gelu(self.pointwise(x))
        inner = gate(inner, self.channel_gate(inner))
        return keep_format(self.pointwise(gate(inner, self.spatial_weights(inner))), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the channel gate as "channel", in (0, 2), and W t as "gate", which may be negative.

        "channel_map" is |x2|, since the channel gate multiplies x1 and not x.
        """
        self.check_input(x)
        inner = functional.gelu(self.pointwise(x))
        channel = self.channel_gate(inner)
        gated = inner * channel
        return {"channel": channel, "channel_map": gated.abs(), "gate": self.spatial_weights(gated)}
