"""The attention of nnU-Net's Primus, whose blocks are those of EVA in timm."""

from typing import Any

import torch
from torch import Tensor

from attn3d.layers.spatial import split_heads
from attn3d.networks.own.registry import register_layout, register_reader
from attn3d.networks.own.tokens import Tokens, over_grid


@register_layout("dynamic_network_architectures.Primus")
def primus_layout(primus: Any, x: Tensor) -> Tokens:
    """Patches of (B, C, *S), as large as the decoder makes of a token, behind the registers."""
    shape = list(x.shape[2:])
    for module in primus.up_projection.modules():
        if hasattr(module, "stride"):
            shape = [size // stride for size, stride in zip(shape, module.stride, strict=True)]
    return over_grid(shape, x.device, more=0 if primus.register_tokens is None else primus.register_tokens.shape[1])


@register_reader("timm.EvaAttention")
def eva_rows(
    block: Any,
    tokens: Tokens,
    queries: Tensor,
    x: Tensor,
    rope: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """softmax(q k / sqrt(d)) over all tokens, q and k turned by their positions, for the chosen voxels."""
    q = block.q_norm(split_heads(block.q_proj(x), block.num_heads))
    k = block.k_norm(split_heads(block.k_proj(x), block.num_heads))
    if rope is not None:
        q, k = (_turned(part, rope, block.num_prefix_tokens) for part in (q, k))
    return {"query": tokens.rows(queries, lambda _, token: _row(block.scale * q[:, :, token], k))}


def _row(q: Tensor, k: Tensor) -> Tensor:
    return (k @ q[..., None]).squeeze(3).softmax(2)


def _turned(tokens: Tensor, rope: Tensor, more: int) -> Tensor:
    """Neighbouring pairs turned by the angles of their token, the first ``more`` tokens aside."""
    sin, cos = rope.chunk(2, -1)
    x = tokens[:, :, more:]
    across = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return torch.cat([tokens[:, :, :more], (x * cos + across * sin).type_as(x)], 2)
