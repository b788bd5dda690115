"""Multi-head self-attention, arXiv 1706.03762: softmax(q k^T / sqrt(d)) v per head, joined and projected."""

from __future__ import annotations

import math

from tests.references.plain import dot, largest_divisor, pointwise, softmax, volume, voxels


def multi_head_self_attention(x, parameters, statistics, training, *, variant="compact", num_heads=None):
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
