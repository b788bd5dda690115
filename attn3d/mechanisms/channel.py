"""Channel self-attention: El-Nouby et al., arXiv 2106.09681 (XCA); Zamir et al., arXiv 2111.09881 (MDTA), equation 1.

Together with attention over pooled voxels it is the paired attention of UNETR++: Shaker et al., arXiv 2212.04497.

Deviations: both papers divide the scores by the temperature; their code multiplies by it, as here. Only the code of
MDTA, and not its equation, normalises q and k. Its depthwise convolution of q, k and v is left out, as in XCA. UNETR++
pools keys and values by a learnt matrix, which requires a fixed number of voxels; here they are means of blocks. In the
authors' code, the spatial half permutes axes so that the values of a voxel are written to other voxels, and it
normalises queries over the voxels, so that its scores shrink as the volume grows; here the spatial half is softmax(q
k^T / sqrt(d)) v.
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import MemoryBudget
from attn3d.attention import ChannelwiseAttention, PatternSpec, VolumeAttention
from attn3d.layers.spatial import join_heads, keep_format, spatial_shape, split_heads, to_tokens, to_volume
from attn3d.mechanisms.base import Mechanism, read_heads
from attn3d.mechanisms.registry import register_attention

__all__ = ["ChannelSelfAttention", "PairedAttention"]


@register_attention("channel")
class ChannelSelfAttention(Mechanism):
    """Multi-head attention between channels. Its cost is linear in the number of voxels.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [v_h softmax(tau_h q_h^T k_h)^T over heads h] + b_o. The channels of
    q and k have unit length over the voxels; tau_h is learnt and starts at 1. There is no residual connection.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        num_heads: number of heads H, a divisor of C; by default the largest up to 8 with at least two channels per
            head.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C + H.

    Examples:
        >>> ChannelSelfAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2106.09681"
    summary = "channels, separately for each channel and head"

    def __init__(self, spatial_dims: int, channels: int, *, num_heads: int | None = None) -> None:
        super().__init__(spatial_dims, channels)
        self.num_heads = read_heads(num_heads, channels, least=2)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attention = ChannelwiseAttention(self.num_heads, normalize=True)
        self.out = nn.Linear(channels, channels)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Returns the projections of the voxels, each (B, H, N, C / H)."""
        return [split_heads(part, self.num_heads) for part in self.qkv(to_tokens(x)).split(self.channels, 2)]

    def attend(self, heads: list[Tensor], shape: list[int], key_mask: Tensor | None) -> Tensor:
        """Attends and returns the joined heads, (B, N, C)."""
        q, k, v = heads
        return self.out(join_heads(self.attention(q, k, v, key_mask)))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attends over the channels of (B, C, *S), comparing them at the voxels where ``key_mask`` (B, *S) is true."""
        self.check_input(x)
        mask, shape = self.read_key_mask(key_mask, x), spatial_shape(x)
        y = keep_format(to_volume(self.attend(self.heads(x), shape, mask), shape), x)
        return y if type(x) is Tensor else y.view_as(x)  # keeps subclasses such as MetaTensor, with metadata

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the weights between channels as "affinity", (B, C, C); 0 between channels of different heads."""
        self.check_input(x)
        q, k, *_ = self.heads(x)
        mask = self.read_key_mask(key_mask, x)
        heads = self.attention.affinity(q, k, mask)
        own = torch.eye(self.num_heads, dtype=heads.dtype, device=heads.device)
        # (B, H, d, H, d), zero between different heads
        blocks = heads.unsqueeze(3) * own[None, :, None, :, None]
        return {"affinity": blocks.flatten(3, 4).flatten(1, 2)}


@register_attention("paired")
class PairedAttention(ChannelSelfAttention):
    """Attention between channels and attention from voxels to pooled voxels, with shared queries and keys.

    q, k, v_c, v_s = split(W x), W: C -> 4 C without bias; y = [W_c c + b_c; W_s s + b_s], with half of the channels
    each, the larger half first. c is the attention of `ChannelSelfAttention` over q, k and v_c, and
    s = softmax(q (P k)^T / sqrt(C / H)) P v_s for every head, where P takes means over the blocks of the pattern. There
    is no residual connection.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C; with a single channel there is no s.
        num_heads: number of heads H, a divisor of C; by default the largest up to 8 with at least two channels per
            head.
        pattern: which voxels see which in s: a pattern, its name or ``(name, {options})``; by default means over
            blocks of 4 voxels along every axis.
        backend: how s is computed, see `attn3d.attend`.
        memory_budget: bytes that s may use, see `attn3d.attend`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 5 C^2 + C + H, independent of the number of voxels.

    Examples:
        >>> PairedAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2212.04497"
    summary = "channels and voxels, separately for each head"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        num_heads: int | None = None,
        pattern: PatternSpec = ("pooled_keys", {"stride": 4}),
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__(spatial_dims, channels, num_heads=num_heads)
        self.qkv = nn.Linear(channels, 4 * channels, bias=False)
        self.spatial = VolumeAttention(
            spatial_dims, self.num_heads, pattern=pattern, backend=backend, memory_budget=memory_budget
        )
        self.out = nn.Linear(channels, channels - channels // 2)
        self.spatial_out = nn.Linear(channels, channels // 2) if channels > 1 else None

    def attend(self, heads: list[Tensor], shape: list[int], key_mask: Tensor | None) -> Tensor:
        """Attends and returns both halves, (B, N, C)."""
        q, k, channel_v, spatial_v = heads
        over_channels = super().attend([q, k, channel_v], shape, key_mask)
        if self.spatial_out is None:
            return over_channels
        over_voxels = join_heads(self.spatial(q, k, spatial_v, shape, key_mask))
        return torch.cat([over_channels, self.spatial_out(over_voxels)], 2)

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the channel weights as "affinity" and the rows of the chosen voxels as "query", (B, H, Q, *S)."""
        self.check_input(x)
        q, k, *_ = self.heads(x)
        chosen = self.read_queries(queries, x)
        mask = self.read_key_mask(key_mask, x)
        rows = self.spatial.rows(q, k, chosen, spatial_shape(x), mask)
        return {"query": rows, **super().attention_weights(x, key_mask=key_mask)}
