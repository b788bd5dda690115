"""Efficient channel attention: Wang, Wu, Zhu, Li, Zuo, Hu, arXiv 1910.03151, equations 9 and 12.

Deviation: the kernel size of the compact form is always 3; that of the paper grows with the logarithm of the channels.
"""

import math

import torch
from torch import Tensor

from attn3d.arguments import odd_per_axis
from attn3d.layers.conv import convolution
from attn3d.layers.gating import gate
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["ECA"]


@register_attention("eca")
class ECA(Mechanism):
    """Gates every channel by the means of the adjacent channels.

    y = x * sigmoid(conv_k(mean(x))), where conv_k is a 1-D convolution along the channels, zero-padded, without bias.
    The paper's kernel size is t = int((log2(C) + 1) / 2), or t + 1 if t is even.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        kernel_size: k, odd; None uses the paper's formula; "auto": 3 in the compact form, None in the paper's.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters k.

    Examples:
        >>> ECA(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1910.03151"
    summary = "channels, by the means of adjacent channels"
    averages_space = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        kernel_size: int | str | None = "auto",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        size = self.by_variant(kernel_size, compact=3, paper=None)
        if size is None:
            size = int((math.log2(channels) + 1) / 2)
            if size % 2 == 0:
                size += 1
        (size,) = odd_per_axis("kernel_size", size, 1)
        self.convolution = convolution(1)(1, 1, size, padding=size // 2, bias=False)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Returns sigmoid(conv_k(mean(x))), (B, C, 1, ..)."""
        mixed = self.convolution(mean(x, axes(x)).unsqueeze(1)).squeeze(1)
        return broadcast_gate(torch.sigmoid(mixed), x)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        return gate(x, self.channel_gate(x))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gate as "channel"."""
        self.check_input(x)
        return {"channel": self.channel_gate(x)}
