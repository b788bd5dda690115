"""The attention of nnU-Net's Primus, which uses the EVA blocks of timm."""

from typing import Any

import torch
from torch import Tensor

from attn3d.layers.spatial import split_heads
from attn3d.networks.own.tokens import Layout, Reader, TokenLayout, over_grid


def primus_layout(primus: Any, x: Tensor) -> TokenLayout:
    """Returns the tokens of (B, C, *S), one per patch, after the registers. The decoder determines the patch size."""
    shape = list(x.shape[2:])
    for module in primus.up_projection.modules():
        if hasattr(module, "stride"):
            shape = [size // stride for size, stride in zip(shape, module.stride, strict=True)]
    return over_grid(shape, x.device, more=0 if primus.register_tokens is None else primus.register_tokens.shape[1])


def eva_rows(
    block: Any,
    tokens: TokenLayout,
    queries: Tensor,
    x: Tensor,
    rope: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Returns softmax(q k / sqrt(d)) over all tokens for the chosen voxels, with rotary positions."""
    q = block.q_norm(split_heads(block.q_proj(x), block.num_heads))
    k = block.k_norm(split_heads(block.k_proj(x), block.num_heads))
    if rope is not None:
        q = _rotated(q, rope, block.num_prefix_tokens)
        k = _rotated(k, rope, block.num_prefix_tokens)
    return {"query": tokens.rows(queries, lambda _, token: _row(block.scale * q[:, :, token], k))}


def _row(q: Tensor, k: Tensor) -> Tensor:
    return (k @ q[..., None]).squeeze(3).softmax(2)


def _rotated(tokens: Tensor, rope: Tensor, more: int) -> Tensor:
    """Rotates pairs of adjacent channels by the angles of their token, except for the first ``more`` tokens."""
    sin, cos = rope.chunk(2, -1)
    x = tokens[:, :, more:]
    across = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return torch.cat([tokens[:, :, :more], (x * cos + across * sin).type_as(x)], 2)


LAYOUTS: dict[str, Layout] = {"dynamic_network_architectures.Primus": primus_layout}
READERS: dict[str, Reader] = {"timm.EvaAttention": eva_rows}
