"""Softmax attention as the layer that mechanisms hold."""

import math

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of, probability
from attn3d.attention.methods import METHODS, attend, attention_rows, plain
from attn3d.capture import needs_plain_operators


class VolumeAttention(nn.Module):
    """softmax(scale q k^T) v over the tokens of a volume, see `attn3d.attend`.

    Args:
        scale: of the products; 1 / sqrt(d) by default.
        dropout: probability of dropping a weight in training.
        method: "auto", "fused" or "reference".

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, *, scale: float | None = None, dropout: float = 0.0, method: str = "auto") -> None:
        super().__init__()
        self.scale = scale
        self.dropout = probability("dropout", dropout)
        self.method = one_of("method", method, METHODS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, N, d), (B, H, M, d), (B, H, M, d_v) -> (B, H, N, d_v)."""
        dropout = self.dropout if self.training else 0.0
        if not torch.jit.is_scripting():
            if not needs_plain_operators():
                return attend(q, k, v, scale=self.scale, dropout=dropout, method=self.method)
        return plain(q, k, v, self._scale_of(q), dropout)

    def rows(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of the queries ``q``, (B, H, Q, M): built whole, so ask for few."""
        return attention_rows(q, k, self._scale_of(q))

    def _scale_of(self, q: Tensor) -> float:
        scale = self.scale
        return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale

    def extra_repr(self) -> str:
        """The options."""
        return f"scale={self.scale}, dropout={self.dropout}, method={self.method!r}"
