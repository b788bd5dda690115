"""Multi-head self-attention: Vaswani et al., arXiv 1706.03762, equation 1 and section 3.2.2, over voxels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attn3d.arguments import positive_integer
from attn3d.attention import Scope, VolumeAttention
from attn3d.attention.memory import MemoryBudget
from attn3d.layers.spatial import central_voxel, convolution, keep_format, spatial_shape, to_tokens, to_volume
from attn3d.mechanisms.base import Mechanism


class MultiHeadSelfAttention(Mechanism):
    """Every voxel becomes a mean of all voxels, weighed anew by every head.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [softmax(q_h k_h^T / sqrt(C / H)) v_h over heads h] + b_o.
    No residual: y replaces x.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        num_heads: H, a divisor of C; by default the largest that is not above 8.
        scope: which voxels see which: a scope such as ``attn3d.Window(8)``, its name or ``(name, {options})``.
        position_bias: learnt for every head by the distance of two voxels, 0 at start: "axis", a sum over the
            axes; "joint", one for every offset; None. For scopes of fixed size: Window, Grid, and Neighborhood
            with "axis".
        dropout: probability of dropping a weight in training.
        method: how it is computed, see `attn3d.attend`.
        memory_budget: bytes that the attention may take, see `attn3d.attend`.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C.

    Example:
        >>> MultiHeadSelfAttention(3, 64, num_heads=4)(torch.randn(1, 64, 4, 8, 8)).shape
        torch.Size([1, 64, 4, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        num_heads: int | None = None,
        scope: Scope | str | Sequence[Any] = "global",
        position_bias: str | None = None,
        dropout: float = 0.0,
        method: str = "auto",
        memory_budget: MemoryBudget = None,
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        divisors = [heads for heads in range(1, channels + 1) if channels % heads == 0]
        if num_heads is None:
            num_heads = max(heads for heads in divisors if heads <= 8)
        if positive_integer("num_heads", num_heads) not in divisors:
            raise ValueError(f"`num_heads` must divide {channels} channels, got {num_heads}; {divisors} do")
        self.num_heads = num_heads
        self.qkv = convolution(1)(channels, 3 * channels, 1)
        self.attention = VolumeAttention(
            spatial_dims,
            num_heads,
            scope=scope,
            position_bias=position_bias,
            dropout=dropout,
            method=method,
            memory_budget=memory_budget,
        )
        self.out = nn.Linear(channels, channels)

    def heads(self, x: Tensor) -> list[Tensor]:
        """q, k and v, each (B, H, N, C / H)."""
        return [to_tokens(part, self.num_heads) for part in self.qkv(x.flatten(2)).chunk(3, 1)]

    def forward(self, x: Tensor) -> Tensor:
        """Attends over (B, C, *S)."""
        self.check_input(x)
        q, k, v = self.heads(x)
        y = self.attention(q, k, v, spatial_shape(x)).transpose(1, 2).flatten(2)
        return keep_format(to_volume(self.out(y), spatial_shape(x)), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """The softmax rows of the chosen voxels as "query", (B, H, Q, *S of the keys)."""
        q, k, _ = self.heads(x)
        chosen = central_voxel(x) if queries is None else queries
        return {"query": self.attention.rows(q, k, chosen, spatial_shape(x))}
