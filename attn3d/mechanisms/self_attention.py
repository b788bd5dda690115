"""Multi-head self-attention: Vaswani et al., arXiv 1706.03762, equation 1 and section 3.2.2, over voxels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import MemoryBudget, natural_number
from attn3d.attention import Pattern, PositionSpec, VolumeAttention, create_features, create_pattern
from attn3d.attention.layer import Tokens
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

__all__ = ["MultiHeadSelfAttention"]


@register_attention("mhsa")
class MultiHeadSelfAttention(Mechanism):
    """Multi-head attention of the voxels of a map to each other.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [softmax(q_h k_h^T / sqrt(C / H)) v_h over heads h] + b_o.
    No residual: y replaces x.

    With positions, norms or cosines, other queries and keys are compared, see `attn3d.attention.Features`. Registers
    (arXiv 2309.16588) are learnt tokens that every voxel sees beside the voxels: their keys and values are those that W
    makes of them, without positions, and they are no part of y.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        num_heads: H, a divisor of C; by default the largest that is not above 8.
        pattern: which voxels see which: a pattern such as ``attn3d.Window(8)``, its name or ``(name, {options})``.
        position: None, "rope" or ``("rope", {options})``: rotates q and k by their place in the volume, with every
            pattern. Options: ``mixed``, ``base`` and ``spacing``, see `attn3d.attention.RotaryPosition`.
        position_bias: learnt for every head by the distance of two voxels, 0 at start: "axis", a sum over the
            axes; "joint", one for every offset; "continuous", from a small network of the offset, for windows of any
            size (arXiv 2111.09883); None. For patterns of fixed size: Window, Grid, and, but for "joint", Neighborhood.
        qk_norm: normalises q and k of every head by their root mean square, with learnt weights.
        scores: "dot", q k^T / sqrt(C / H), or "cosine", their cosines over a temperature of every head, which is learnt
            and at least 0.01.
        registers: how many there are; for the patterns Global and PooledKeys.
        dropout: probability of dropping a weight in training.
        backend: how it is computed, see `attn3d.attend`.
        memory_budget: bytes that the attention may take, see `attn3d.attend`.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C, with ``qk_norm`` 2 C / H more, with cosines H, with R
        registers R C.

    Examples:
        >>> MultiHeadSelfAttention(3, 64, num_heads=4)(torch.randn(1, 64, 4, 8, 8)).shape
        torch.Size([1, 64, 4, 8, 8])
    """

    paper = "1706.03762"
    summary = "voxels, for each voxel and head anew"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        num_heads: int | None = None,
        pattern: Pattern | str | Sequence[Any] = "global",
        position: PositionSpec = None,
        position_bias: str | None = None,
        qk_norm: bool = False,
        scores: str = "dot",
        registers: int = 0,
        dropout: float = 0.0,
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        self.num_heads = num_heads = read_heads(num_heads, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        pattern = create_pattern(pattern)
        if natural_number("registers", registers) and pattern.local:
            raise ValueError(f"`registers` are served by the patterns 'global' and 'pooled_keys', got {pattern}")
        self.registers = nn.Parameter(0.02 * torch.randn(registers, channels)) if registers else None
        self.attention = VolumeAttention(
            spatial_dims,
            num_heads,
            pattern=pattern,
            features=create_features(
                spatial_dims,
                num_heads,
                channels // num_heads,
                position=position,
                qk_norm=qk_norm,
                scores=scores,
            ),
            position_bias=position_bias,
            dropout=dropout,
            backend=backend,
            memory_budget=memory_budget,
        )
        self.out = nn.Linear(channels, channels)

    def heads(self, x: Tensor) -> list[Tensor]:
        """q, k and v, each (B, H, N, C / H)."""
        return [split_heads(part, self.num_heads) for part in self.qkv(to_tokens(x)).chunk(3, 2)]

    def beside(self) -> Tokens | None:
        """Keys and values of the registers, each (H, R, C / H)."""
        if self.registers is None:
            return None
        _, k, v = self.qkv(self.registers).unflatten(1, [3, self.num_heads, -1]).permute(1, 2, 0, 3)
        return k, v

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attends over (B, C, *S), where ``key_mask`` (B, *S) is given over the voxels at which it is true.

        What a voxel gets that sees none is ``b_o``.
        """
        self.check_input(x)
        mask, shape = None if key_mask is None else self.read_key_mask(key_mask, x), spatial_shape(x)
        y = self.attention(*self.heads(x), shape, mask, self.beside())
        # As a view of x, so that a subclass such as MetaTensor comes back as what it was.
        y = keep_format(to_volume(self.out(join_heads(y)), shape), x)
        return y if type(x) is Tensor else y.view_as(x)  # of a subclass such as MetaTensor, with what it says

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The softmax rows of the chosen voxels as "query", (B, H, Q, *S of the keys)."""
        q, k, _ = self.heads(x)
        chosen = central_voxel(x) if queries is None else queries
        mask = None if key_mask is None else self.read_key_mask(key_mask, x)
        return {"query": self.attention.rows(q, k, chosen, spatial_shape(x), mask, self.beside())}
