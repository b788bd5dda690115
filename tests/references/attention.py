"""softmax(scale q k^T + bias) v, query by query, and which voxels a voxel sees in every pattern.

Patterns are rules on coordinates: `keys_seen` gives the keys of one voxel, `steps` the distance of a key. Nothing
here uses groups or tiles.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

Index = tuple[int, ...]


class Rule(NamedTuple):
    """Which voxels see which. ``size``: of a window, grid or neighbourhood, or the stride of pooled keys."""

    name: str
    size: Index = ()
    shift: bool = False
    dilation: Index = ()
    stride: Index = ()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output (B, H, N, d_v) and the weights (B, H, N, M); a query without a key has weights 0.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v).
        scale: factor of the products; 1 / sqrt(d) by default.
        key_mask: (B, M), True for keys that may be seen.
        bias: added to the scaled products, broadcast to (B, H, N, M); -inf hides a pair.
        keep: factors with which dropout multiplies the weights, (B, H, N, M).
    """
    seen = torch.ones(q.shape[0], k.shape[2], dtype=torch.bool) if key_mask is None else key_mask
    every = list(range(k.shape[2]))
    rows = [
        _row(q, k, i, every, seen, scale, None if bias is None else _row_of(bias, i, every)) for i in range(q.shape[2])
    ]
    weights = torch.stack(rows, 2)
    dropped = weights if keep is None else weights * keep
    return _weighted_sum(dropped, v), weights


def attend_within(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Index,
    *,
    scale: float | None = None,
    table: Tensor | None = None,
    table_kind: str | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Like `attend`, over the keys that a voxel sees by a rule; the weights of other keys are 0.

    Args:
        rule: which voxels see which.
        q: (B, H, N, d). The tokens of q, k and v are the voxels of a volume in row-major order.
        k: see q.
        v: see q.
        shape: S, the shape of the volume.
        scale: see `attend`.
        table: the position bias, see `entries`.
        table_kind: "axis" or "joint".
        keep: see `attend`.
    """
    if rule.name == "pooled_keys":
        k, v = pool(k, shape, rule.size), pool(v, shape, rule.size)
    voxels = list(itertools.product(*map(range, shape)))
    number = {voxel: place for place, voxel in enumerate(voxels)}
    rows = []
    for i, voxel in enumerate(voxels):
        if rule.name == "pooled_keys":
            chosen, bias = list(range(k.shape[2])), None
        else:
            keys = keys_seen(rule, voxel, shape)
            chosen, bias = [number[key] for key in keys], None
            if table is not None:
                places = [entries(rule, table_kind, steps(rule, voxel, key, shape)) for key in keys]
                bias = sum(table[:, list(of_axis)] for of_axis in zip(*places, strict=True))
        seen = torch.ones(q.shape[0], len(chosen), dtype=torch.bool)
        weights = _row(q, k, i, chosen, seen, scale, bias)
        rows.append(weights.new_zeros(*weights.shape[:2], k.shape[2]).index_copy(2, torch.tensor(chosen), weights))
    weights = torch.stack(rows, 2)
    dropped = weights if keep is None else weights * keep
    return _weighted_sum(dropped, v), weights


def keys_seen(rule: Rule, voxel: Index, shape: Index) -> list[Index]:
    """The voxels that a voxel sees."""
    if rule.name == "global":
        return list(itertools.product(*map(range, shape)))
    if rule.name == "axial":  # all lines through the voxel; the voxel itself counts once
        lines = {voxel}
        for axis, extent in enumerate(shape):
            lines |= {(*voxel[:axis], place, *voxel[axis + 1 :]) for place in range(extent)}
        return sorted(lines)
    return list(itertools.product(*(_along(rule, axis, voxel[axis], shape[axis]) for axis in range(len(shape)))))


def _along(rule: Rule, axis: int, place: int, extent: int) -> list[int]:
    """The positions along one axis that a position sees."""
    size = rule.size[axis]
    if rule.name == "window":
        start = size // 2 if rule.shift and extent > size else 0
        return [other for other in range(extent) if (other - start) // size == (place - start) // size]
    if rule.name == "grid":
        stride = math.ceil(extent / size)
        return [other for other in range(extent) if other % stride == place % stride]
    step = rule.dilation[axis]
    reachable = [other for other in range(extent) if other % step == place % step]
    count = min(size, max(1, extent // step))
    run = min(rule.stride[axis], count)
    leader = min(reachable.index(place) // run * run + run // 2, len(reachable) - 1)
    first = leader - count // 2
    first = min(max(first, 0), len(reachable) - count)  # at a border, the neighbourhood slides inward
    return reachable[first : first + count]


def steps(rule: Rule, voxel: Index, key: Index, shape: Index) -> Index:
    """The offset of a key from a voxel along each axis, in voxels, or in strides of the grid or dilation."""
    unit = [1] * len(shape)
    if rule.name == "grid":
        unit = [math.ceil(extent / size) for extent, size in zip(shape, rule.size, strict=True)]
    if rule.name == "neighborhood":
        unit = list(rule.dilation)
    return tuple((there - here) // one for there, here, one in zip(key, voxel, unit, strict=True))


def entries(rule: Rule, table_kind: str, offset: Index) -> tuple[int, ...]:
    """The indices of a position table whose values are summed for an offset.

    "axis": the tables of all axes one after another, each from offset 1 - size to size - 1. "joint": one value
    for every offset; the last axis varies fastest.
    """
    lengths = [2 * size - 1 for size in rule.size]
    along = [step + size - 1 for step, size in zip(offset, rule.size, strict=True)]
    if table_kind == "axis":
        return tuple(sum(lengths[:axis]) + place for axis, place in enumerate(along))
    place = 0
    for length, here in zip(lengths, along, strict=True):
        place = place * length + here
    return (place,)


def pool(x: Tensor, shape: Index, stride: Index) -> Tensor:
    """The means of x, (B, H, N, d), over the voxels of every block, (B, H, M, d)."""
    members: dict[Index, list[int]] = {}
    for place, voxel in enumerate(itertools.product(*map(range, shape))):
        cell = tuple(here // step for here, step in zip(voxel, stride, strict=True))
        members.setdefault(cell, []).append(place)
    return torch.stack([sum(x[:, :, j] for j in members[cell]) / len(members[cell]) for cell in sorted(members)], 2)


def _row(
    q: Tensor, k: Tensor, i: int, keys: list[int], seen: Tensor, scale: float | None, bias: Tensor | None
) -> Tensor:
    """The weights of query i over some keys, (B, H, len(keys))."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    energies = (q[:, :, i, None] * scale * k[:, :, keys]).sum(-1)
    energies = energies if bias is None else energies + bias
    allowed = seen[:, None].expand_as(energies) & (energies > -math.inf)
    energies = torch.where(allowed, energies, 0.0)
    largest = torch.where(allowed, energies, -math.inf).amax(-1, keepdim=True).detach()
    exponentials = torch.where(allowed, torch.exp(energies - torch.where(largest > -math.inf, largest, 0.0)), 0.0)
    total = exponentials.sum(-1, keepdim=True)
    return exponentials / torch.where(total > 0, total, 1.0)


def _row_of(bias: Tensor, i: int, keys: list[int]) -> Tensor:
    row = bias[:, :, i if bias.shape[2] > 1 else 0]
    return row[:, :, keys] if bias.shape[3] > 1 else row


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    return sum(weights[:, :, :, j, None] * v[:, :, j, None] for j in range(v.shape[2]))
