"""Attention within groups in plain operators, all groups at once: what traces, exports and compiled graphs keep.

A capture is to hold for sizes that it has not seen. So nothing here depends on whether a window divides the volume:
every group has its full size, what lies outside of the volume is hidden, and sizes meet in arithmetic alone.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from attn3d.attention.groups import AxisGroups, outer
from attn3d.attention.patterns import Pattern
from attn3d.attention.sdpa import equal_widths
from attn3d.capture import at_least_single, without_autocast

Bias = Callable[
    [list[Tensor]], Tensor | None
]  # from distances along every axis, (G_a, w_qa, w_ka), to (H, G, w_q, w_k)


class Cover(NamedTuple):
    """Groups of which every voxel is a query once.

    Attributes:
        queries: tokens (G, w_q); some voxel in place of one that does not exist.
        keys: tokens (G, w_k), likewise.
        visible: (G, 1 or w_q, w_k), false for a key that does not exist or is not seen.
        place: where each voxel is among the queries of all groups, (N,).
        distances: along every axis, (G_a, w_qa, w_ka).
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    place: Tensor
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
    """softmax(scale q k^T + bias) v over the keys that a pattern lets each query see.

    Args:
        q: (B, H, N, d), as k and v.
        k: see q.
        v: see q.
        shape: S, whose product is N.
        pattern: one with groups.
        bias: of the pairs of all groups.
        key_mask: (B, N), true where a key may be seen.
        scale: of the products.
        dropout: probability of dropping a weight.
    """
    arange = functools.partial(torch.arange, device=q.device)
    covers = [_cover(axes, shape, arange) for axes in pattern.covers(shape, arange)]
    if len(covers) == 1:
        return _attend(q, k, v, covers[0], bias(covers[0].distances), key_mask, scale, dropout)
    parts = [_scores(q, k, cover, key_mask, scale) for cover in covers]
    scores = torch.cat(parts, 3)
    if key_mask is not None:
        keyless = (scores == -math.inf).all(3, keepdim=True)
        scores = scores.masked_fill(keyless, 0.0)
    weights = drop(scores.softmax(3), dropout).split([one.shape[3] for one in parts], 3)
    out: Any = sum(_weighted(part, v, cover) for part, cover in zip(weights, covers, strict=True))
    out = out.to(q.dtype)
    return out if key_mask is None else out.masked_fill(keyless, 0.0)


def _cover(axes: list[AxisGroups], shape: Sequence[Any], arange: Callable[[Any], Tensor]) -> Cover:
    queries, here = _tokens([groups.queries for groups in axes], shape)
    keys, there = _tokens([groups.keys for groups in axes], shape)
    visible = there[:, None]
    if any(groups.seen is not None for groups in axes):
        pairs = [_pairs(groups) for groups in axes]
        visible = visible & functools.reduce(functools.partial(outer, torch.logical_and), pairs)
    voxels = math.prod(shape)
    # Queries that are no voxel are written behind the last, which is cut off.
    place = torch.zeros_like(arange(voxels + 1))
    place = place.scatter(0, torch.where(here, queries, voxels).flatten(), arange(queries.shape[0] * queries.shape[1]))
    distances = [
        torch.div(groups.keys[:, None] - groups.queries[..., None], groups.step, rounding_mode="floor")
        for groups in axes
    ]
    return Cover(torch.where(here, queries, 0), torch.where(there, keys, 0), visible, place[:-1], distances)


def _tokens(positions: list[Tensor], shape: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The tokens of all groups, (G, w), and which of them are voxels."""
    tokens, inside = positions[0], (positions[0] >= 0) & (positions[0] < shape[0])
    for along, extent in zip(positions[1:], shape[1:], strict=True):
        tokens = outer(torch.add, tokens * extent, along)
        inside = outer(torch.logical_and, inside, (along >= 0) & (along < extent))
    return tokens, inside


def _pairs(groups: AxisGroups) -> Tensor:
    """Which query sees which key along an axis, (G, w_q, w_k)."""
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
    """By PyTorch's function on (G, B H, w, d): a mask is then the same for batch and heads."""
    width = v.shape[3]
    visible = cover.visible.unsqueeze(1)
    if key_mask is not None:
        seen = _take(key_mask[:, None, :, None], cover.keys).permute(2, 0, 1, 4, 3)
        visible = visible & seen.expand(-1, -1, q.shape[1], -1, -1).flatten(1, 2)
    # A query without a key gets a mean of all, which is left out: an empty softmax would be nan.
    keyless = ~visible.any(3, keepdim=True)
    mask = visible | keyless
    if bias is not None:
        bias = bias.to(q.dtype).transpose(0, 1).repeat(1, q.shape[0], 1, 1)
        mask = torch.where(mask, bias, -math.inf)
    parts = (_take(q, cover.queries), _take(k, cover.keys), _take(v, cover.keys))
    parts = equal_widths(*(part.permute(2, 0, 1, 3, 4).flatten(1, 2) for part in parts))
    out = scaled_dot_product_attention(*parts, mask, dropout, scale=scale)[..., :width]
    if key_mask is not None:  # without, what has no key is no voxel
        out = out.masked_fill(keyless, 0.0)
    out = out.unflatten(1, [q.shape[0], q.shape[1]]).permute(1, 2, 0, 3, 4)
    # A copy in any case: an export may find the kernel's output in another layout than the one that it runs with.
    out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2, 3).index_select(2, cover.place)


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """(B, H, N, d) at the tokens (G, w), (B, H, G, w, d)."""
    return x.index_select(2, tokens.flatten()).unflatten(2, [tokens.shape[0], tokens.shape[1]])


def _scores(q: Tensor, k: Tensor, cover: Cover, key_mask: Tensor | None, scale: float) -> Tensor:
    """The scores of every voxel in its group, (B, H, N, w_k)."""
    scores = (_take(at_least_single(q), cover.queries) * scale) @ _take(at_least_single(k), cover.keys).mT
    visible = cover.visible
    if key_mask is not None:
        visible = visible & _take(key_mask[:, None, :, None], cover.keys).mT
    scores = scores.masked_fill(~visible, -math.inf)
    return scores.flatten(2, 3).index_select(2, cover.place)


def _weighted(weights: Tensor, v: Tensor, cover: Cover) -> Tensor:
    """The weighted sums of the values of every voxel's group, (B, H, N, d)."""
    out = _take(weights, cover.queries) @ _take(at_least_single(v), cover.keys)
    return out.flatten(2, 3).index_select(2, cover.place)
