"""Squeeze-and-excitation: Hu, Shen, Albanie, Sun, Wu, arXiv 1709.01507, equations 2 to 4.

Deviation: the compact form has no biases, like most later implementations; the authors' Caffe code has them.
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import boolean
from attn3d.layers.gating import gate
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["SqueezeExcitation"]


@register_attention("se")
class SqueezeExcitation(Mechanism):
    """Gates every channel by the means of all channels.

    y = x * sigmoid(W2 relu(W1 mean(x))), W1: C -> h, W2: h -> C, h = max(C // reduction, min(C, 4)).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4).
        bias: whether W1 and W2 have biases; "auto": False in the compact form, True in the paper's.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h, with biases C + h more.

    Examples:
        >>> SqueezeExcitation(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1709.01507"
    summary = "channels, by their means"
    averages_space = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool | str = "auto",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        hidden = hidden_width(channels, reduction)
        bias = boolean("bias", self.by_variant(bias, compact=False, paper=True))
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Returns sigmoid(W2 relu(W1 mean(x))), (B, C, 1, ..)."""
        hidden = torch.relu(self.squeeze(mean(x, axes(x))))
        return broadcast_gate(torch.sigmoid(self.excite(hidden)), x)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        return gate(x, self.channel_gate(x))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gate as "channel"."""
        self.check_input(x)
        return {"channel": self.channel_gate(x)}
