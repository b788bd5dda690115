"""Transforms of queries and keys before their product: normalization, temperature and rotary positions."""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import boolean, one_of, positive_integer
from attn3d.attention.patterns import Pattern
from attn3d.attention.rotary import PositionSpec, create_position
from attn3d.capture import at_least_single, without_autocast
from attn3d.layers.spatial import check_spatial_dims

SCORES = ("dot", "cosine")
LEAST_TEMPERATURE = 0.01


class Features(nn.Module):
    """Transforms queries and keys before their product.

    The enabled steps are applied in this order:

    1. ``qk_norm``: separate RMS norms of q and k over the channels of a head (arXiv 2010.04245 and 1910.07467).
    2. ``scores="cosine"``: q and k are scaled to unit length, and q is divided by a temperature max(tau_h, 0.01),
       which is learnt for every head (arXiv 2111.09883).
    3. ``position``: rotary positions (`RotaryPosition`), which leave lengths unchanged.

    Args:
        spatial_dims: 1, 2 or 3.
        heads: number of heads H.
        head_dim: channels per head d.
        position: None, "rope" or ``("rope", {options})``.
        qk_norm: whether to normalize q and k.
        scores: "dot" for plain products, "cosine" for cosine similarities.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """

    temperature: nn.Parameter | None

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
        spatial_dims, heads = check_spatial_dims(spatial_dims), positive_integer("heads", heads)
        head_dim = positive_integer("head_dim", head_dim)
        normed, self.cosine = boolean("qk_norm", qk_norm), one_of("scores", scores, SCORES) == "cosine"
        self.query_norm = nn.RMSNorm(head_dim) if normed else None
        self.key_norm = nn.RMSNorm(head_dim) if normed else None
        self.position = create_position(position, spatial_dims, heads, head_dim)
        self.register_parameter("temperature", nn.Parameter(torch.full([heads], 0.1)) if self.cosine else None)

    @without_autocast
    def keys(self, k: Tensor) -> Tensor:
        """Returns the keys (B, H, M, d) before positions are applied."""
        return self._normed(k, self.key_norm)

    def _normed(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        y = x
        if norm is not None:
            y = norm(y.to(norm.weight.dtype))
        if self.cosine:
            y = nn.functional.normalize(at_least_single(y), dim=-1)
        return y.to(x.dtype)

    @without_autocast
    def forward(self, q: Tensor, k: Tensor, pattern: Pattern, shape: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the transformed queries and keys, with the positions that the pattern gives them in the volume."""
        q, k = self._normed(q, self.query_norm), self.keys(k)
        if self.temperature is not None:
            temperature = at_least_single(self.temperature).clamp(min=LEAST_TEMPERATURE)
            q = (at_least_single(q) / temperature[:, None, None]).to(q.dtype)
        if self.position is None:
            return q, k
        query_positions, key_positions = pattern.positions(shape, q.device)
        return self.position(q, query_positions), self.position(k, key_positions)


def create_features(spatial_dims: int, heads: int, head_dim: int, **options: Any) -> Features | None:
    """Returns `Features`, or None if the options leave queries and keys unchanged."""
    features = Features(spatial_dims, heads, head_dim, **options)
    return features if features.cosine or any(features.children()) else None
