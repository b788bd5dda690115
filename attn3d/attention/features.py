"""What of queries and keys is compared: their norm, their positions, and whether by angle alone."""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import boolean, one_of
from attn3d.attention.patterns import Pattern
from attn3d.attention.rotary import PositionSpec, create_position
from attn3d.capture import at_least_single, without_autocast

SCORES = ("dot", "cosine")
LEAST_TEMPERATURE = 0.01


class Features(nn.Module):
    """Queries and keys before their products.

    In this order, each where it is asked for: RMS norms of q and of k over the channels of a head, with weights of
    their own (arXiv 2010.04245 and 1910.07467); unit length, and q divided by a temperature max(tau_h, 0.01), learnt
    for every head (arXiv 2111.09883); rotation by position (`RotaryPosition`), which changes no length.

    Args:
        spatial_dims: 1, 2 or 3.
        heads: H.
        head_dim: d.
        position: None, "rope" or ``("rope", {options})``.
        qk_norm: whether there are norms.
        scores: "dot", products as they are, or "cosine", of vectors of unit length.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        spatial_dims: int,
        heads: int,
        head_dim: int,
        *,
        position: PositionSpec = None,
        qk_norm: bool = False,
        scores: str = "dot",
    ) -> None:
        super().__init__()
        normed, self.cosine = boolean("qk_norm", qk_norm), one_of("scores", scores, SCORES) == "cosine"
        self.query_norm = nn.RMSNorm(head_dim) if normed else None
        self.key_norm = nn.RMSNorm(head_dim) if normed else None
        self.position = create_position(position, spatial_dims, heads, head_dim)
        self.register_parameter("temperature", nn.Parameter(torch.full([heads], 0.1)) if self.cosine else None)

    @without_autocast
    def queries(self, q: Tensor) -> Tensor:
        """Queries (B, H, N, d) without their positions."""
        q = self._normed(q, self.query_norm)
        if self.temperature is None:
            return q
        learnt: Any = self.temperature
        temperature = at_least_single(learnt).clamp(min=LEAST_TEMPERATURE)
        return (at_least_single(q) / temperature[:, None, None]).to(q.dtype)

    @without_autocast
    def keys(self, k: Tensor) -> Tensor:
        """Keys (B, H, M, d) without their positions."""
        return self._normed(k, self.key_norm)

    def _normed(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        y = x if norm is None else norm(x.to(norm.weight.dtype))
        y = nn.functional.normalize(at_least_single(y), dim=-1) if self.cosine else y
        return y.to(x.dtype)

    @without_autocast
    def forward(self, q: Tensor, k: Tensor, pattern: Pattern, shape: list[int]) -> tuple[Tensor, Tensor]:
        """Queries and keys, with the positions that a pattern gives them in a volume."""
        q, k = self.queries(q), self.keys(k)
        if self.position is None:
            return q, k
        of_queries, of_keys = pattern.positions(shape, q.device)
        return self.position(q, of_queries), self.position(k, of_keys)


def create_features(spatial_dims: int, heads: int, head_dim: int, **options: Any) -> Features | None:
    """`Features`, or None where queries and keys stay as they are."""
    features = Features(spatial_dims, heads, head_dim, **options)
    return features if features.cosine or any(features.children()) else None
