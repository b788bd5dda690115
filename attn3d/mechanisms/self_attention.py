"""Multi-head self-attention: Vaswani et al., arXiv 1706.03762, equation 1 and section 3.2.2, over voxels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attn3d.arguments import MemoryBudget, positive_integer
from attn3d.attention import Pattern, VolumeAttention
from attn3d.layers.spatial import (
    central_voxel,
    join_heads,
    keep_format,
    spatial_shape,
    split_heads,
    to_tokens,
    to_volume,
)
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["MultiHeadSelfAttention"]


@register_attention("mhsa")
class MultiHeadSelfAttention(Mechanism):
    """Multi-head attention of the voxels of a map to each other.

    q, k, v = split(W x + b), W: C -> 3 C; y = W_o [softmax(q_h k_h^T / sqrt(C / H)) v_h over heads h] + b_o.
    No residual: y replaces x.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: C.
        num_heads: H, a divisor of C; by default the largest that is not above 8.
        pattern: which voxels see which: a pattern such as ``attn3d.Window(8)``, its name or ``(name, {options})``.
        position_bias: learnt for every head by the distance of two voxels, 0 at start: "axis", a sum over the
            axes; "joint", one for every offset; None. For patterns of fixed size: Window, Grid, and Neighborhood
            with "axis".
        dropout: probability of dropping a weight in training.
        backend: how it is computed, see `attn3d.attend`.
        memory_budget: bytes that the attention may take, see `attn3d.attend`.
        variant: "compact" or "paper"; both are the same.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C^2 + 4 C.

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
        position_bias: str | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
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
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attention = VolumeAttention(
            spatial_dims,
            num_heads,
            pattern=pattern,
            position_bias=position_bias,
            dropout=dropout,
            backend=backend,
            memory_budget=memory_budget,
        )
        self.out = nn.Linear(channels, channels)

    def heads(self, x: Tensor) -> list[Tensor]:
        """q, k and v, each (B, H, N, C / H)."""
        return [split_heads(part, self.num_heads) for part in self.qkv(to_tokens(x)).chunk(3, 2)]

    def forward(self, x: Tensor) -> Tensor:
        """Attends over (B, C, *S)."""
        self.check_input(x)
        y = self.attention(*self.heads(x), spatial_shape(x))
        # As a view of x, so that a subclass such as MetaTensor comes back as what it was.
        y = keep_format(to_volume(self.out(join_heads(y)), spatial_shape(x)), x)
        return y if type(x) is Tensor else y.view_as(x)  # of a subclass such as MetaTensor, with what it says

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """The softmax rows of the chosen voxels as "query", (B, H, Q, *S of the keys)."""
        q, k, _ = self.heads(x)
        chosen = central_voxel(x) if queries is None else queries
        return {"query": self.attention.rows(q, k, chosen, spatial_shape(x))}
