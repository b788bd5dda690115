"""Multi-head self-attention: Vaswani et al., arXiv 1706.03762, equation 1 and section 3.2.2, over voxels."""

import torch
from torch import Tensor, nn

from attn3d.arguments import MemoryBudget, natural_number
from attn3d.attention import PatternSpec, PositionSpec, VolumeAttention, create_features, create_pattern
from attn3d.attention.layer import Tokens
from attn3d.layers.spatial import join_heads, keep_format, spatial_shape, split_heads, to_tokens, to_volume
from attn3d.mechanisms.base import Mechanism, read_heads
from attn3d.mechanisms.registry import register_attention

__all__ = ["MultiHeadSelfAttention"]


@register_attention("mhsa")
class MultiHeadSelfAttention(Mechanism):
    """Multi-head self-attention over voxels.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [softmax(q_h k_h^T / sqrt(C / H)) v_h over heads h] + b_o.
    There is no residual connection.

    The options ``position``, ``qk_norm`` and ``scores`` transform queries and keys before their product, see
    `attn3d.attention.Features`. Registers (arXiv 2309.16588) are learnt tokens that every voxel sees in addition to the
    voxels. Their keys and values are projected by W, without positions, and they are not part of y.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        num_heads: number of heads H, a divisor of C; by default the largest up to 8.
        pattern: which voxels see which: a pattern such as ``attn3d.Window(8)``, its name or ``(name, {options})``.
        position: None, "rope" or ``("rope", {options})``: rotates q and k by their position in the volume, with every
            pattern. Options: ``mixed``, ``base`` and ``spacing``, see `attn3d.attention.RotaryPosition`.
        position_bias: a bias that is learnt for every head and distance of two voxels: "axis", a sum of one bias per
            axis; "joint", one bias for every offset; "continuous", a small network of the offset, for windows of any
            size (arXiv 2111.09883); or None. "axis" and "joint" start at 0. Requires a pattern of fixed size: Window,
            Grid or, except with "joint", Neighborhood.
        qk_norm: whether to normalise q and k of every head by their root mean square, with learnt weights.
        scores: "dot", q k^T / sqrt(C / H), or "cosine", cosine similarities divided by a temperature per head, which
            is learnt and at least 0.01.
        registers: number of registers; supported by the patterns Global and PooledKeys.
        dropout: probability of dropping a weight in training.
        backend: how attention is computed, see `attn3d.attend`.
        memory_budget: bytes that attention may use, see `attn3d.attend`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C, with ``qk_norm`` 2 C / H more, with "cosine" H more, with R
        registers R C more.

    Examples:
        >>> MultiHeadSelfAttention(3, 64, num_heads=4)(torch.randn(1, 64, 4, 8, 8)).shape
        torch.Size([1, 64, 4, 8, 8])
    """

    paper = "1706.03762"
    summary = "voxels, separately for each voxel and head"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        num_heads: int | None = None,
        pattern: PatternSpec = "global",
        position: PositionSpec = None,
        position_bias: str | None = None,
        qk_norm: bool = False,
        scores: str = "dot",
        registers: int = 0,
        dropout: float = 0.0,
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__(spatial_dims, channels)
        self.num_heads = num_heads = read_heads(num_heads, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        pattern = create_pattern(pattern)
        if natural_number("registers", registers) and pattern.local:
            raise ValueError(f"`registers` are supported by the patterns 'global' and 'pooled_keys', got {pattern}")
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
        """Returns q, k and v, each (B, H, N, C / H)."""
        return [split_heads(part, self.num_heads) for part in self.qkv(to_tokens(x)).chunk(3, 2)]

    def beside(self) -> Tokens | None:
        """Returns keys and values of the registers, each (H, R, C / H)."""
        if self.registers is None:
            return None
        _, k, v = self.qkv(self.registers).unflatten(1, [3, self.num_heads, -1]).permute(1, 2, 0, 3)
        return k, v

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attends over (B, C, *S), or over the voxels where ``key_mask`` (B, *S) is true.

        The output of a voxel that sees no voxel and no register is ``b_o``.
        """
        self.check_input(x)
        mask, shape = self.read_key_mask(key_mask, x), spatial_shape(x)
        y = self.attention(*self.heads(x), shape, mask, self.beside())
        y = keep_format(to_volume(self.out(join_heads(y)), shape), x)
        return y if type(x) is Tensor else y.view_as(x)  # keeps subclasses such as MetaTensor, with metadata

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the softmax rows of the chosen voxels as "query", (B, H, Q, *S of the keys)."""
        self.check_input(x)
        q, k, _ = self.heads(x)
        chosen = self.read_queries(queries, x)
        mask = self.read_key_mask(key_mask, x)
        return {"query": self.attention.rows(q, k, chosen, spatial_shape(x), mask, self.beside())}
