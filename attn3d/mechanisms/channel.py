"""Channel self-attention: El-Nouby et al., arXiv 2106.09681 (XCA), equation 3; Zamir et al., arXiv 2111.09881 (MDTA).

With a second half over pooled voxels it is the paired attention of UNETR++: Shaker et al., arXiv 2212.04497.

Deviations: MDTA's depthwise convolution of q, k and v is left out, as in XCA. UNETR++ pools keys and values by a learnt
matrix, which is tied to one number of voxels: here they are means of blocks. In its authors' code the half over voxels
permutes axes such that the values of one voxel end up in others, and its queries are normalised along the voxels, so
that its scores shrink as the volume grows: here that half is softmax(q k^T / sqrt(d)) v.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import MemoryBudget
from attn3d.attention import ChannelwiseAttention, Pattern, VolumeAttention
from attn3d.layers.spatial import (
    central_voxel,
    join_heads,
    keep_format,
    spatial_shape,
    split_heads,
    to_tokens,
    to_volume,
)
from attn3d.mechanisms.base import Mechanism, read_heads
from attn3d.mechanisms.registry import register_attention

__all__ = ["ChannelSelfAttention", "PairedAttention"]


@register_attention("channel")
class ChannelSelfAttention(Mechanism):
    """Multi-head attention of the channels of a map to each other, linear in the number of voxels.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [v_h softmax(tau_h q_h^T k_h)^T over heads h] + b_o. The channels of
    q and k have unit length along the voxels; tau_h is learnt and 1 at start. No residual: y replaces x.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        num_heads: H, a divisor of C; by default the largest that is not above 8 and leaves a head two channels.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C + H.

    Examples:
        >>> ChannelSelfAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2106.09681"
    summary = "channels, for each channel and head anew"

    def __init__(
        self, spatial_dims: int, channels: int, *, num_heads: int | None = None, variant: str = "compact"
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        self.num_heads = read_heads(num_heads, channels, least=2)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attention = ChannelwiseAttention(self.num_heads, normalize=True)
        self.out = nn.Linear(channels, channels)

    def heads(self, x: Tensor) -> list[Tensor]:
        """What the projection makes of the voxels, each (B, H, N, C / H)."""
        return [split_heads(part, self.num_heads) for part in self.qkv(to_tokens(x)).split(self.channels, 2)]

    def attend(self, heads: list[Tensor], shape: list[int], key_mask: Tensor | None) -> Tensor:
        """What is made of the heads, (B, N, C)."""
        q, k, v = heads
        return self.out(join_heads(self.attention(q, k, v, key_mask)))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attends over (B, C, *S), comparing channels by the voxels at which ``key_mask`` (B, *S) is true."""
        self.check_input(x)
        mask, shape = None if key_mask is None else self.read_key_mask(key_mask, x), spatial_shape(x)
        y = keep_format(to_volume(self.attend(self.heads(x), shape, mask), shape), x)
        return y if type(x) is Tensor else y.view_as(x)  # of a subclass such as MetaTensor, with what it says

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weights of channels for channels as "affinity", (B, C, C); 0 between channels of different heads."""
        q, k, *_ = self.heads(x)
        mask = None if key_mask is None else self.read_key_mask(key_mask, x)
        heads = self.attention.affinity(q, k, mask)
        own = torch.eye(self.num_heads, dtype=heads.dtype, device=heads.device)
        # (B, H, d, H, d), in which heads meet themselves alone
        blocks = heads.unsqueeze(3) * own[None, :, None, :, None]
        return {"affinity": blocks.flatten(3, 4).flatten(1, 2)}


@register_attention("paired")
class PairedAttention(ChannelSelfAttention):
    """Attention of channels to channels beside attention of voxels to pooled voxels, with queries and keys in common.

    q, k, v_c, v_s = split(W x), W: C -> 4 C without bias; y = [W_c c + b_c; W_s s + b_s], half of the channels
    each, the larger half first. c is what `ChannelSelfAttention` makes of the heads of q, k and v_c, and
    s = softmax(q (P k)^T / sqrt(C / H)) P v_s of every head, P the pattern's means over blocks of voxels. No residual.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C; a single one has no second half.
        num_heads: H, a divisor of C; by default the largest that is not above 8 and leaves a head two channels.
        pattern: which voxels see which in s: a pattern, its name or ``(name, {options})``; by default the means of
            blocks of 4 voxels along every axis.
        backend: how s is computed, see `attn3d.attend`.
        memory_budget: bytes that s may take, see `attn3d.attend`.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 5 C^2 + C + H, whatever the number of voxels.

    Examples:
        >>> PairedAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2212.04497"
    summary = "channels and voxels, for each and head anew"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        num_heads: int | None = None,
        pattern: Pattern | str | Sequence[Any] = ("pooled_keys", {"stride": 4}),
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, num_heads=num_heads, variant=variant)
        self.qkv = nn.Linear(channels, 4 * channels, bias=False)
        self.spatial = VolumeAttention(
            spatial_dims, self.num_heads, pattern=pattern, backend=backend, memory_budget=memory_budget
        )
        self.out = nn.Linear(channels, channels - channels // 2)
        self.spatial_out = nn.Linear(channels, channels // 2) if channels > 1 else None

    def attend(self, heads: list[Tensor], shape: list[int], key_mask: Tensor | None) -> Tensor:
        """Both halves, (B, N, C)."""
        q, k, v, of_voxels = heads
        over_channels = super().attend([q, k, v], shape, key_mask)
        if self.spatial_out is None:
            return over_channels
        over_voxels = join_heads(self.spatial(q, k, of_voxels, shape, key_mask))
        return torch.cat([over_channels, self.spatial_out(over_voxels)], 2)

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weights of channels as "affinity", and the rows of the chosen voxels as "query", (B, H, Q, *S)."""
        q, k, *_ = self.heads(x)
        chosen = central_voxel(x) if queries is None else queries
        mask = None if key_mask is None else self.read_key_mask(key_mask, x)
        rows = self.spatial.rows(q, k, chosen, spatial_shape(x), mask)
        return {"query": rows, **super().attention_weights(x, key_mask=key_mask)}
