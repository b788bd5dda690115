"""Coordinate attention: Hou, Zhou, Feng, arXiv 2103.02907, equations 4 to 8.

Deviations: the paper is 2-D; here each of n axes has its own profile and gate, with a shared middle layer. The compact
form has relu where the authors' code has hard-swish.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.arguments import one_of, positive_integer
from attn3d.layers.conv import convolution
from attn3d.layers.gating import gate
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, keep_format
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["CoordinateAttention"]


@register_attention("coord")
class CoordinateAttention(Mechanism):
    """Gates every channel and position along each axis.

    For every axis a, the profile z_a is the mean over the other axes, (B, C, S_a). The profiles are concatenated to z,
    h = act(norm(W z + b)), W: C -> m, m = max(min_channels, C // reduction), and split again into h_a;
    g_a = sigmoid(W_a h_a + b_a), W_a: m -> C; y = x * g_1 * .. * g_n.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the middle width m.
        min_channels: the smallest m.
        activation: "relu" or "hardswish"; "auto": "relu" in the compact form, "hardswish" in the paper's.
        norm: spec of the norm.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters C m + 3 m + n (m C + C).

    Examples:
        >>> CoordinateAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2103.02907"
    summary = "channels, by position along every axis"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 32,
        min_channels: int = 8,
        activation: str = "auto",
        norm: NormSpec = "batch",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        middle = max(
            positive_integer("min_channels", min_channels),
            channels // positive_integer("reduction", reduction),
        )
        activation = self.by_variant(activation, compact="relu", paper="hardswish")
        self.activation = one_of("activation", activation, ("relu", "hardswish"))
        line = convolution(1)
        self.shared = line(channels, middle, 1)
        self.norm = create_norm(norm, middle)
        self.per_axis = nn.ModuleList(line(middle, channels, 1) for _ in range(spatial_dims))

    def axis_gates(self, x: Tensor) -> list[Tensor]:
        """Returns g_a for every axis, (B, C, .., S_a, ..) with 1 along the other axes."""
        profiles = []
        for axis in axes(x):
            others = axes(x)
            others.remove(axis)
            # A mean over an empty list of axes would be over all of them.
            profiles.append(mean(x, others) if len(others) > 0 else x)
        hidden = self.norm(self.shared(torch.cat(profiles, 2)))
        hidden = torch.relu(hidden) if self.activation == "relu" else functional.hardswish(hidden)
        start = 0
        gates = []
        for index, excite in enumerate(self.per_axis):
            size = x.shape[2 + index]
            profile = torch.sigmoid(excite(hidden.narrow(2, start, size)))
            shape = [1] * len(self.per_axis)
            shape[index] = size
            gates.append(profile.unflatten(2, shape))
            start += size
        return gates

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        gates = self.axis_gates(x)
        # The product of all but the last gate is small: it has size 1 along the last axis.
        first = gates[0]
        for index in range(1, len(gates) - 1):
            first = first * gates[index]
        first = keep_format(first, x)  # mixed memory formats are several times slower
        return gate(x, first, gates[-1] if len(gates) > 1 else None)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gates as "axis0", "axis1", .."""
        self.check_input(x)
        return {f"axis{index}": profile for index, profile in enumerate(self.axis_gates(x))}
