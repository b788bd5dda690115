"""The attention of MONAI's networks: gates, windows, and attention over all voxels or patches."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.attention.groups import flat_indices, outer
from attn3d.networks.own.tokens import Layout, Reader, TokenLayout, over_grid


def map_layout(module: nn.Module, x: Tensor) -> TokenLayout:
    """Returns the tokens of (B, C, *S), one per voxel."""
    return over_grid(x.shape[2:], x.device)


def patch_layout(vit: Any, x: Tensor) -> TokenLayout:
    """Returns the tokens of (B, C, *S), one per patch, after the class token if there is one."""
    embedding: Any = vit.patch_embedding.patch_embeddings
    if isinstance(embedding, nn.Sequential):  # rearranged and projected
        rearrange: Any = embedding[0]
        patch: Any = [rearrange.axes_lengths[f"p{axis + 1}"] for axis in range(x.dim() - 2)]
    else:
        patch = embedding.stride
    shape = [size // length for size, length in zip(x.shape[2:], patch, strict=True)]
    return over_grid(shape, x.device, more=int(hasattr(vit, "cls_token")))


def window_layout(block: Any, x: Tensor) -> TokenLayout:
    """Returns the tokens of (B, *S, C) with one group per window, shifted and padded at the end like in the block."""
    shape, positions = list(x.shape[1:-1]), []
    for size, width, shift in zip(shape, block.window_size, block.shift_size, strict=True):
        width, shift = (width, shift) if size > width else (size, 0)
        padded = torch.arange(math.ceil(size / width) * width, device=x.device)
        positions.append(padded.roll(-shift).unflatten(0, (-1, width)))
    inside = outer(operator.and_, [along < size for along, size in zip(positions, shape, strict=True)])
    return TokenLayout(shape, flat_indices(positions, shape).where(inside, -1))


def gate(block: Any, tokens: TokenLayout, queries: Tensor, g: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Returns the gate of AttentionUnet, psi(relu(W_g g + W_x x))."""
    return {"spatial": block.psi(block.relu(block.W_g(g) + block.W_x(x)))}


def window_rows(block: Any, tokens: TokenLayout, queries: Tensor, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Returns softmax(q k / sqrt(d) + bias + mask) within the window of each chosen voxel."""
    groups, count = tokens.voxels.shape

    def weights(group: int, token: int) -> Tensor:
        q, k, _ = block.qkv(x[group::groups]).unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = block.relative_position_bias_table[block.relative_position_index[token, :count]]
        scores = (k @ (block.scale * q[:, :, token, :, None])).squeeze(3) + bias.T
        return (scores if mask is None else scores + mask[group, token]).softmax(2)

    return {"query": tokens.rows(queries, weights)}


def self_rows(
    block: Any, tokens: TokenLayout, queries: Tensor, x: Tensor, attn_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns softmax(q k / sqrt(d)) over all tokens, for the chosen voxels."""
    if block.use_combined_linear:
        q, k, _ = block.input_rearrange(block.qkv(x))
    else:
        q, k = block.input_rearrange(block.to_q(x)), block.input_rearrange(block.to_k(x))
    return {"query": tokens.rows(queries, lambda _, token: _row(block, q, k, token, attn_mask))}


def cross_rows(
    block: Any, tokens: TokenLayout, queries: Tensor, x: Tensor, context: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns the softmax over the tokens of a context, which have no grid, or of the map if there is no context."""
    q, k = block.input_rearrange(block.to_q(x)), block.input_rearrange(block.to_k(x if context is None else context))
    if context is None:
        return {"query": tokens.rows(queries, lambda _, token: _row(block, q, k, token))}
    return {"context": torch.stack([_row(block, q, k, token) for token in queries.tolist()], 2)}


def _row(block: Any, q: Tensor, k: Tensor, token: int, key_mask: Tensor | None = None) -> Tensor:
    """Returns the weights of one token, (B, H, tokens)."""
    if block.attention_dtype is not None:
        q, k = q.to(block.attention_dtype), k.to(block.attention_dtype)
    if block.rel_positional_embedding is None:
        scores = (k @ q[:, :, token, :, None]).squeeze(3) * block.scale
    else:  # MONAI's function needs all pairs, as in the module
        scores = block.rel_positional_embedding(q, q @ k.mT * block.scale, q)[:, :, token]
    if block.causal:
        scores = scores.masked_fill(torch.arange(k.shape[2], device=k.device) > token, -math.inf)
    if key_mask is not None:
        scores = scores.masked_fill(key_mask[:, None] == 0, -math.inf)
    return scores.softmax(2)


LAYOUTS: dict[str, Layout] = {
    "monai.AttentionBlock": map_layout,
    "monai.SpatialAttentionBlock": map_layout,
    "monai.SpatialTransformer": map_layout,
    "monai.SwinTransformerBlock": window_layout,
    "monai.ViT": patch_layout,
    "monai.ViTAutoEnc": patch_layout,
}
READERS: dict[str, Reader] = {
    "monai.AttentionBlock": gate,
    "monai.CrossAttentionBlock": cross_rows,
    "monai.SABlock": self_rows,
    "monai.WindowAttention": window_rows,
}
