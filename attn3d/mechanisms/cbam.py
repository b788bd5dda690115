"""Convolutional block attention: Woo, Park, Lee, Kweon, arXiv 1807.06521, equations 1 to 3.

Deviations: the compact form has no biases and no norm, and its spatial convolution takes [mean, max]. The authors' code
has biases in the MLP, the order [max, mean], and a batch norm that starts with weight 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn3d.arguments import boolean, odd_per_axis, of_python
from attn3d.layers.conv import map_convolution
from attn3d.layers.gating import gate
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.pooling import mean_and_maximum
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["CBAM"]


@register_attention("cbam")
class CBAM(Mechanism):
    """Gates every channel, then every voxel of the result.

    x1 = x * sigmoid(MLP(mean(x)) + MLP(max(x))), MLP = W2 relu(W1 .), W1: C -> h, h = max(C // reduction, min(C, 4));
    y = x1 * sigmoid(norm(conv_k([mean_c(x1); max_c(x1)]))).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4).
        kernel_size: k, odd, one integer or one per axis: (3, 7, 7) suits thick slices.
        bias: whether the MLP has biases; "auto": False in the compact form, True in the paper's.
        norm: spec of the norm after the convolution; "auto": None in the compact form, "batch" in the paper's.
            In the paper's form, the weight of the norm starts at 0, so that the gate is 1/2 everywhere.
        order: order of the two maps; "auto": ("mean", "max") in the compact form, ("max", "mean") in the paper's.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h + 2 k^n; in the paper's form C + h + 2 more.

    Examples:
        >>> CBAM(3, 64, reduction=8)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1807.06521"
    summary = "channels, then voxels"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int | Sequence[int] = 7,
        bias: bool | str = "auto",
        norm: NormSpec = "auto",
        order: Sequence[str] | str = "auto",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        hidden = hidden_width(channels, reduction)
        bias = boolean("bias", self.by_variant(bias, compact=False, paper=True))
        kernel = odd_per_axis("kernel_size", kernel_size, spatial_dims)
        order = of_python(self.by_variant(order, compact=("mean", "max"), paper=("max", "mean")))
        if order not in (("mean", "max"), ("max", "mean")):
            raise ValueError(f'`order` must be ("mean", "max") or ("max", "mean"), got {order!r}')
        self.mean_first = order[0] == "mean"
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)
        self.convolution = map_convolution(spatial_dims)(
            2, 1, kernel, padding=tuple(size // 2 for size in kernel), bias=False
        )
        self.norm = create_norm(self.by_variant(norm, compact=None, paper="batch"), 1)
        weight = getattr(self.norm, "weight", None)
        if variant == "paper" and weight is not None:
            nn.init.zeros_(weight)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Returns sigmoid(MLP(mean(x)) + MLP(max(x))), (B, C, 1, ..)."""
        mean, largest = mean_and_maximum(x, axes(x))
        of_mean = self.excite(torch.relu(self.squeeze(mean.flatten(1))))
        of_largest = self.excite(torch.relu(self.squeeze(largest.flatten(1))))
        return broadcast_gate(torch.sigmoid(of_mean + of_largest), x)

    def spatial_gate(self, x: Tensor, channel_gate: Tensor) -> Tensor:
        """Returns the gate per voxel of x * channel_gate, (B, 1, *S)."""
        mean, largest = mean_and_maximum(x, [1], channel_gate)
        maps = torch.cat([mean, largest] if self.mean_first else [largest, mean], 1)
        return torch.sigmoid(self.norm(self.convolution(maps)))

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        channel = self.channel_gate(x)
        return gate(x, channel, self.spatial_gate(x, channel))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gates as "channel" and "spatial"."""
        self.check_input(x)
        channel = self.channel_gate(x)
        return {"channel": channel, "spatial": self.spatial_gate(x, channel)}
