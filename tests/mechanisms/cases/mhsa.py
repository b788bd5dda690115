"""Multi-head self-attention, arXiv 1706.03762: softmax(q k^T / sqrt(d)) v per head, joined and projected."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.mechanisms.case import Case, Floor
from tests.references.plain import dot, largest_divisor, pointwise, softmax, volume, voxels


def multi_head_self_attention(x, parameters, statistics, training, *, num_heads=None):
    channels = x.shape[1]
    if num_heads is None:
        num_heads = largest_divisor(channels, 8)
    head_dim = channels // num_heads
    weight, bias, out_weight, out_bias = parameters

    projected = pointwise(voxels(x), weight.reshape(3 * channels, channels), bias)
    queries, keys, values = (
        {index: value.unflatten(1, (3, num_heads, head_dim))[:, part] for index, value in projected.items()}
        for part in range(3)
    )

    attended = {}
    for index, query in queries.items():
        shares = softmax([dot(query, key) / math.sqrt(head_dim) for key in keys.values()])
        heads = sum(share[..., None] * value for share, value in zip(shares, values.values(), strict=True))
        attended[index] = heads.flatten(1)
    return volume(pointwise(attended, out_weight.reshape(channels, channels), out_bias))


class PlainMHSA(nn.Module):
    """Multi-head self-attention with a score for every pair."""

    def __init__(self, channels: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or max(divisor for divisor in range(1, 9) if channels % divisor == 0)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *shape = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        width = channels // self.heads
        q, k, v = tokens.reshape(batch, -1, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(width)
        y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(batch, channels, *shape)


def count(c, n, variant):
    return 4 * c * c + 4 * c


def keys(n):
    qkv, out = "qkv.weight 24x8, qkv.bias 24", "out.weight 8x8, out.bias 8"
    usual = f"{qkv}, {out}"
    return {
        "default": usual,
        "one_head": usual,
        "window": f"{qkv}, attention.position_table 8x{5 * n}, {out}",
        "grid": f"{qkv}, attention.position_table 8x{3**n}, {out}",
        "axial": usual,
        "neighborhood": f"{qkv}, attention.position_table 8x{5 * n}, {out}",
        "pooled_keys": usual,
        "features": f"registers 2x8, {qkv}, attention.features.temperature 1, "
        f"attention.features.query_norm.weight 8, attention.features.key_norm.weight 8, {out}",
    }


CASE = Case(
    forms={"default": {}, "one_head": {"num_heads": 1}},
    patterns={
        "window": {"pattern": ("window", {"size": 3, "shift": True}), "position_bias": "axis"},
        "grid": {"pattern": ("grid", {"size": 2}), "position_bias": "joint"},
        "axial": {"pattern": "axial"},
        "neighborhood": {"pattern": ("neighborhood", {"size": 3}), "position_bias": "axis"},
        "pooled_keys": {"pattern": ("pooled_keys", {"stride": 2})},
        "features": {"num_heads": 1, "qk_norm": True, "scores": "cosine", "registers": 2},
    },
    reference=multi_head_self_attention,
    count=count,
    keys=keys,
    plain=PlainMHSA,
    floor=Floor(3, 5, "keys and values: x; the rest: x, y", "keys and values: dy, x; input: dy, x, dx"),
    weights={"query": (2, 8, 3, 4, 3, 5)},
    values=[{"num_heads": 3}, {"num_heads": 0}, {"dropout": 1.5}, {"dropout": -0.1}],
    kinds=[{"num_heads": 2.0}, {"dropout": "none"}],
    drawn={"dropout": [0.0, 0.0, 0.3]},
    is_set=True,
)
