"""Attention within groups in plain operators, all groups at once, for traces, exports and compiled graphs.

A captured graph must be valid for sizes other than those it was captured at. The code therefore never branches on
sizes: every group has its full size, positions outside the volume are masked, and sizes are used in arithmetic only.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from attn3d.attention.functional import attention_rows
from attn3d.attention.groups import AxisGroups, flat_indices, outer
from attn3d.attention.patterns import Pattern
from attn3d.attention.sdpa import equal_widths
from attn3d.capture import at_least_single, is_captured, is_eager, without_autocast

# Maps the distances along every axis, (G_a, w_qa, w_ka), to the bias (H, G, w_q, w_k).
Bias = Callable[[list[Tensor]], Tensor | None]


class Cover(NamedTuple):
    """Groups in which every voxel is a query exactly once.

    Attributes:
        queries: token indices, (G, w_q). Positions outside the volume have index 0.
        keys: token indices, (G, w_k), likewise.
        visible: (G, 1 or w_q, w_k), false for keys outside the volume or that the query does not see.
        position: index of each voxel among the flattened queries of all groups, (N,).
        distances: along every axis, (G_a, w_qa, w_ka).
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    position: Tensor
    distances: list[Tensor]


@without_autocast
def attend_captured(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Sequence[Any],
    pattern: Pattern,
    bias: Bias,
    key_mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Computes the same as `attn3d.attention.grouped.attend_groups`, given a pattern and a function for its bias."""
    arange = functools.partial(torch.arange, device=q.device)
    covers = [_cover(axes, shape, arange) for axes in pattern.covers(shape, arange)]
    if len(covers) == 1:
        return _attend(q, k, v, covers[0], bias(covers[0].distances), key_mask, scale, dropout)
    parts = [_scores(q, k, cover, key_mask, scale) for cover in covers]
    scores = torch.cat(parts, 3)
    if key_mask is not None:
        keyless = (scores == -math.inf).all(3, keepdim=True)
        scores = scores.masked_fill(keyless, 0.0)
    weights = drop(scores.softmax(3), dropout).split([part.shape[3] for part in parts], 3)
    out: Any = sum(_weighted(part, v, cover) for part, cover in zip(weights, covers, strict=True))
    out = out.to(q.dtype)
    return out if key_mask is None else out.masked_fill(keyless, 0.0)


def _cover(axes: list[AxisGroups], shape: Sequence[Any], arange: Callable[[Any], Tensor]) -> Cover:
    queries, here = _tokens([groups.queries for groups in axes], shape)
    keys, there = _tokens([groups.keys for groups in axes], shape)
    visible = there[:, None]
    if any(groups.seen is not None for groups in axes):
        visible = visible & outer(operator.and_, [_pairs(groups) for groups in axes])
    voxels = math.prod(shape)
    # Queries outside the volume are written to an extra last entry, which is dropped.
    position = torch.zeros_like(arange(voxels + 1))
    position = position.scatter(
        0, torch.where(here, queries, voxels).flatten(), arange(queries.shape[0] * queries.shape[1])
    )
    distances = [
        torch.div(groups.keys[:, None] - groups.queries[..., None], groups.step, rounding_mode="floor")
        for groups in axes
    ]
    return Cover(torch.where(here, queries, 0), torch.where(there, keys, 0), visible, position[:-1], distances)


def _tokens(positions: list[Tensor], shape: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Returns the token indices of all groups, (G, w), and a mask of those inside the volume."""
    inside = [(along >= 0) & (along < extent) for along, extent in zip(positions, shape, strict=True)]
    return flat_indices(positions, shape), outer(operator.and_, inside)


def _pairs(groups: AxisGroups) -> Tensor:
    """Returns which query sees which key along an axis, (G, w_q, w_k)."""
    sizes = groups.queries.shape[0], groups.queries.shape[1], groups.keys.shape[1]
    if groups.seen is None:
        return groups.queries.new_ones(sizes, dtype=torch.bool)
    return groups.seen.expand(sizes)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cover: Cover,
    bias: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Calls PyTorch's function on (G, B H, w, d), so that batch and heads share one mask."""
    width = v.shape[3]
    visible = cover.visible.unsqueeze(1)
    if key_mask is not None:
        seen = _take(key_mask[:, None, :, None], cover.keys).permute(2, 0, 1, 4, 3)
        visible = visible & seen.expand(-1, -1, q.shape[1], -1, -1).flatten(1, 2)
    # The softmax of a query without keys would be nan: such a query attends to all keys, and its output is discarded.
    keyless = ~visible.any(3, keepdim=True)
    mask = visible | keyless
    if bias is not None:
        bias = bias.to(q.dtype).transpose(0, 1).repeat(1, q.shape[0], 1, 1)
        mask = torch.where(mask, bias, -math.inf)
    parts = (_take(q, cover.queries), _take(k, cover.keys), _take(v, cover.keys))
    q_part, k_part, v_part = (part.permute(2, 0, 1, 3, 4).flatten(1, 2) for part in parts)
    if bias is None or is_eager() or is_captured():
        parts = equal_widths(q_part, k_part, v_part)
        out = scaled_dot_product_attention(*parts, mask, dropout, scale=scale)[..., :width]
    else:
        # In a transform of `torch.func`, PyTorch does not see that a bias from outside of it requires a gradient, and
        # chooses a kernel that has none.
        weights = drop(attention_rows(q_part, k_part, scale, bias=mask), dropout)
        out = (weights @ v_part.to(weights.dtype)).to(q.dtype)
    if key_mask is not None:  # without a key mask, only positions outside the volume have no keys
        out = out.masked_fill(keyless, 0.0)
    out = out.unflatten(1, [q.shape[0], q.shape[1]]).permute(1, 2, 0, 3, 4)
    # Always copied: the layout of the kernel's output may differ between export and execution.
    out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2, 3).index_select(2, cover.position)


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """Gathers the tokens (G, w) of x, (B, H, N, d), as (B, H, G, w, d)."""
    return x.index_select(2, tokens.flatten()).unflatten(2, [tokens.shape[0], tokens.shape[1]])


def _scores(q: Tensor, k: Tensor, cover: Cover, key_mask: Tensor | None, scale: float) -> Tensor:
    """Returns the scores of every voxel in its group, (B, H, N, w_k)."""
    scores = (_take(at_least_single(q), cover.queries) * scale) @ _take(at_least_single(k), cover.keys).mT
    visible = cover.visible
    if key_mask is not None:
        visible = visible & _take(key_mask[:, None, :, None], cover.keys).mT
    scores = scores.masked_fill(~visible, -math.inf)
    return scores.flatten(2, 3).index_select(2, cover.position)


def _weighted(weights: Tensor, v: Tensor, cover: Cover) -> Tensor:
    """Returns the weighted sum of the values in every voxel's group, (B, H, N, d)."""
    out = _take(weights, cover.queries) @ _take(at_least_single(v), cover.keys)
    return out.flatten(2, 3).index_select(2, cover.position)
