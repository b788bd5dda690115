"""Dual attention: Fu, Liu, Tian, Li, Bao, Fang, Lu, arXiv 1809.02983, equations 1 to 4.

Deviations: `DualAttention` adds both branches to the same input, without the convolutions around them; the published
segmentation head with these convolutions is `DualAttentionHead`. The authors' code subtracts the channel energy from
the maximum of its row, which reverses the order of the weights: ``channel_energy="official"``. The channel energy is a
sum over all N voxels, so ``scale`` can divide it by N or sqrt(N).
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import MemoryBudget, positive_integer
from attn3d.attention import ChannelwiseAttention, PatternSpec, VolumeAttention
from attn3d.layers.conv import convolution
from attn3d.layers.norms import BatchNorm
from attn3d.layers.spatial import keep_format, spatial_shape, to_tokens, to_volume
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["ChannelAttention", "DualAttention", "DualAttentionHead", "PositionAttention"]


class PositionAttention(Mechanism):
    """Adds to every voxel a sum over all voxels, weighted by their similarity to it.

    y = x + alpha P, P = softmax(q k^T) v over the voxels, unscaled, q, k: C -> max(1, C // reduction),
    v: C -> C, with biases; alpha is learnt and starts at 0.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the width of q and k.
        pattern: which voxels see which: a pattern such as ``attn3d.Window(8)``, its name or ``(name, {options})``.
        backend: how attention is computed, see `attn3d.attend`.
        memory_budget: bytes that attention may use, see `attn3d.attend`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 (C C' + C') + C^2 + C + 1, C' the width of q and k.
    """

    identity_at_start = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 8,
        pattern: PatternSpec = "global",
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__(spatial_dims, channels)
        inner = max(1, channels // positive_integer("reduction", reduction))
        self.alpha = nn.Parameter(torch.zeros(1))
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, channels)
        self.attention = VolumeAttention(
            spatial_dims, 1, pattern=pattern, scale=1.0, backend=backend, memory_budget=memory_budget
        )

    def context(self, x: Tensor) -> Tensor:
        """Returns P, (B, C, *S)."""
        tokens = to_tokens(x)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.query, self.key, self.value))
        p = self.attention(q, k, v, spatial_shape(x))
        return to_volume(p.squeeze(1), spatial_shape(x))

    def forward(self, x: Tensor) -> Tensor:
        """Adds alpha P to (B, C, *S)."""
        self.check_input(x)
        return keep_format(x + self.alpha * self.context(x), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the softmax rows of the chosen voxels as "query", (B, 1, Q, *S)."""
        self.check_input(x)
        tokens = to_tokens(x)
        chosen = self.read_queries(queries, x)
        q, k = self.query(tokens).unsqueeze(1), self.key(tokens).unsqueeze(1)
        return {"query": self.attention.rows(q, k, chosen, spatial_shape(x))}


class ChannelAttention(Mechanism):
    """Adds to every channel a sum over all channels, weighted by their similarity to it.

    y = x + beta Q, Q = softmax(E) A, E = A A^T, A = x as (C, N); with "official", E is replaced by the maximum of its
    row minus E. beta is learnt and starts at 0. E is computed in at least single precision.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        channel_energy: "paper" (A A^T) or "official".
        scale: factor of E, which grows with N: "none", "1/N" or "1/sqrt(N)".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). One parameter.
    """

    identity_at_start = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        channel_energy: str = "paper",
        scale: str = "none",
    ) -> None:
        super().__init__(spatial_dims, channels)
        self.beta = nn.Parameter(torch.zeros(1))
        self.attention = ChannelwiseAttention(1, channel_energy=channel_energy, scale=scale)

    def context(self, x: Tensor) -> Tensor:
        """Returns Q, (B, C, *S)."""
        tokens = to_tokens(x).unsqueeze(1)
        return to_volume(self.attention(tokens, tokens, tokens).squeeze(1), spatial_shape(x))

    def forward(self, x: Tensor) -> Tensor:
        """Adds beta Q to (B, C, *S)."""
        self.check_input(x)
        return keep_format(x + self.beta * self.context(x), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns softmax(E) as "affinity", (B, C, C)."""
        self.check_input(x)
        tokens = to_tokens(x).unsqueeze(1)
        return {"affinity": self.attention.affinity(tokens, tokens).squeeze(1)}


@register_attention("danet")
class DualAttention(Mechanism):
    """Adds the outputs of position attention and channel attention.

    y = x + alpha P + beta Q, with P of `PositionAttention` and Q of `ChannelAttention`. It starts as the identity.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the width of q and k in the position branch.
        channel_energy: "paper" (A A^T) or "official" (the maximum of the row minus it).
        scale: factor of the channel energy: "none", "1/N" or "1/sqrt(N)".
        pattern: which voxels see which in the position branch: a pattern, its name or ``(name, {options})``.
        backend: how the position branch is computed, see `attn3d.attend`.
        memory_budget: bytes that the position branch may use, see `attn3d.attend`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 (C C' + C') + C^2 + C + 2, C' = max(1, C // reduction).

    Examples:
        >>> DualAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1809.02983"
    summary = "voxels for each voxel, and channels for each channel"
    identity_at_start = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 8,
        channel_energy: str = "paper",
        scale: str = "none",
        pattern: PatternSpec = "global",
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__(spatial_dims, channels)
        self.position = PositionAttention(
            spatial_dims,
            channels,
            reduction=reduction,
            pattern=pattern,
            backend=backend,
            memory_budget=memory_budget,
        )
        self.channel = ChannelAttention(spatial_dims, channels, channel_energy=channel_energy, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """Adds alpha P + beta Q to (B, C, *S)."""
        self.check_input(x)
        y = x + self.position.alpha * self.position.context(x)
        return keep_format(y + self.channel.beta * self.channel.context(x), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the rows of the chosen voxels as "query" and the softmax of the channels as "affinity"."""
        self.check_input(x)
        return {**self.position.attention_weights(x, queries), **self.channel.attention_weights(x)}


class DualAttentionHead(nn.Module):
    """The segmentation head of the paper (section 3.1), from feature maps to logits.

    f_p = conv(PAM(conv(x))), f_c = conv(CAM(conv(x))), where conv is a 3^n convolution without bias, batch norm and
    relu, C_in -> C_in / 4, then C_in / 4 -> C_out; logits = classify(f_p + f_c), where classify is a dropout of 0.1 and
    a 1^n convolution. Separate classifiers of f_p and of f_c are for auxiliary losses of the branches.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: number of input channels C_in, at least 4.
        out_channels: number of channels C_out before the classifiers.
        num_classes: number of channels of the logits.
        channel_energy: see `ChannelAttention`.
        scale: see `ChannelAttention`.
        pattern: see `PositionAttention`.
        backend: see `attn3d.attend`.
        memory_budget: see `attn3d.attend`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C_in, *S) -> three logits (B, num_classes, *S): of f_p + f_c, of f_p and of f_c.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_classes: int,
        *,
        channel_energy: str = "paper",
        scale: str = "none",
        pattern: PatternSpec = "global",
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__()
        in_channels = positive_integer("in_channels", in_channels)
        if in_channels < 4:
            raise ValueError(f"`in_channels` must be at least 4, got {in_channels}")
        out_channels = positive_integer("out_channels", out_channels)
        num_classes = positive_integer("num_classes", num_classes)
        middle = in_channels // 4

        def convolve(channels: int, out_channels: int) -> nn.Sequential:
            conv = convolution(spatial_dims)(channels, out_channels, 3, padding=1, bias=False)
            return nn.Sequential(conv, BatchNorm(out_channels), nn.ReLU())

        def classify() -> nn.Sequential:
            return nn.Sequential(nn.Dropout(0.1), convolution(spatial_dims)(out_channels, num_classes, 1))

        self.position = nn.Sequential(
            convolve(in_channels, middle),
            PositionAttention(spatial_dims, middle, pattern=pattern, backend=backend, memory_budget=memory_budget),
            convolve(middle, out_channels),
        )
        self.channel = nn.Sequential(
            convolve(in_channels, middle),
            ChannelAttention(spatial_dims, middle, channel_energy=channel_energy, scale=scale),
            convolve(middle, out_channels),
        )
        self.classify = classify()
        self.classify_position = classify()
        self.classify_channel = classify()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the logits of the sum, of the position branch and of the channel branch."""
        position, channel = self.position(x), self.channel(x)
        return (
            self.classify(position + channel),
            self.classify_position(position),
            self.classify_channel(channel),
        )
