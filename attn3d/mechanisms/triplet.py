"""Triplet attention: Misra, Nalamada, Arasanipalai, Hou, arXiv 2010.03045.

Deviations: the paper is 2-D and has three branches; here there is one for each of n axes and one for the channels. The
batch norms have PyTorch's momentum of 0.1; the authors use 0.01.
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import odd_per_axis
from attn3d.layers.blockwise import runs_eagerly
from attn3d.layers.conv import map_convolution
from attn3d.layers.gating import weighted_sum
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.pooling import mean_and_maximum
from attn3d.layers.recomputed import recomputed
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["TripletAttention"]


@register_attention("triplet")
class TripletAttention(Mechanism):
    """Gates by the mean of n + 1 gates, each pooled over a different one of the n spatial axes and the channels.

    g_a = sigmoid(norm(conv_k([max_a(x); mean_a(x)]))), where a is one of the n axes or the channels. The convolution
    has a k^n kernel over the n remaining axes, with the channels taking the place of a pooled spatial axis;
    y = x * sum_a g_a / (n + 1).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        kernel_size: k, odd, along all axes and the channels.
        norm: spec of the norms.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters (n + 1) (2 k^n + 2), independent of C.

    Examples:
        >>> TripletAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2010.03045"
    summary = "channels and axes, pooled over one at a time"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        kernel_size: int = 7,
        norm: NormSpec = "batch",
    ) -> None:
        super().__init__(spatial_dims, channels)
        (size,) = odd_per_axis("kernel_size", kernel_size, 1)
        # The first n branches pool one axis each, the last branch pools the channels.
        self.branches = nn.ModuleList()
        for _ in range(spatial_dims + 1):
            conv = map_convolution(spatial_dims)(2, 1, size, padding=size // 2, bias=False)
            self.branches.append(nn.Sequential(conv, create_norm(norm, 1)))

    def gates(self, x: Tensor) -> list[Tensor]:
        """Returns g_a of every axis, then of the channels, with size 1 along the pooled axis."""
        gates = []
        for index, branch in enumerate(self.branches):
            axis = 2 + index if index < self.spatial_dims else 1
            mean, largest = mean_and_maximum(x, [axis])
            maps = torch.cat([largest, mean], axis).transpose(1, axis)
            gates.append(torch.sigmoid(branch(maps)).transpose(1, axis))
        return gates

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        if not torch.jit.is_scripting() and runs_eagerly(x):
            return recomputed(TripletAttention.gated, self, x)  # saves only x for backward
        return self.gated(x)

    def gated(self, x: Tensor) -> Tensor:
        """Returns x times the mean of the gates."""
        gates = [gate / (self.spatial_dims + 1) for gate in self.gates(x)]
        return weighted_sum([x for _ in gates], gates)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the mean of the gates as "gate"."""
        self.check_input(x)
        total = sum(self.gates(x), torch.zeros_like(x))
        return {"gate": total / (self.spatial_dims + 1)}
