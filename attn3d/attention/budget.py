"""A budget of bytes beyond queries, keys and values: what fits it, and how large tiles of scores may be within it.

What a method takes is counted as in `attn3d.attention.workspace`. While a compiler looks on, sizes may be symbols, of
which neither cells nor tiles can be counted: tiles are then cut by their scores alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attn3d.attention.cells import axis_adds, axis_cells
from attn3d.attention.memory import TILE_BYTES, MemoryBudget, needs_gradient, read_bytes, tile_copies
from attn3d.attention.plain import pooled_shape
from attn3d.attention.scopes import Axial, Global, Grid, Neighborhood, PooledKeys, Scope, Window, name_of
from attn3d.attention.workspace import cells_workspace, fused_workspace, tiles_workspace

LEAST_ROOM = 2**11  # bytes of scores, below which tiles are too small to be worth their while

# What is proposed instead of a scope that does not fit.
_OTHERS = (Global(), Window(8), Window(4), Grid(8), Axial(), Neighborhood(3), PooledKeys(8))


def fused_bytes(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> int:
    """The bytes beyond q, k and v that PyTorch's kernel takes, with what is copied to make them fit it."""
    rows, columns = (x.shape[0] * x.shape[1] * x.shape[2] * x.element_size() for x in (q, k))
    folded = key_mask is not None
    width = max(q.shape[3] + folded, v.shape[3])
    copied = sum(
        size * width
        for x, size in ((q, rows), (k, columns), (v, columns))
        if x.shape[3] < width or x.stride(3) != 1 or (folded and x is not v)
    )
    if folded and width > q.shape[3] + 1:  # the mask is folded in before they are widened
        copied += (rows + columns) * (q.shape[3] + 1)
    taken = copied + rows * width * (1 + folded) + 4 * q.shape[0] * q.shape[1] * q.shape[2]
    training = needs_gradient(q, k, v)
    if training:
        taken += copied + (rows + 2 * columns) * width
    if torch.compiler.is_compiling():
        return taken
    widened = q.new_empty([1]).expand(*q.shape[:3], width)
    return taken + fused_workspace(widened, k, training)


def chunked_bytes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: bool, room: int) -> int:
    """The bytes beyond q, k and v that the method "chunked" takes, with so much room for scores."""
    sequences = q.shape[0] * q.shape[1]
    wide = max(4, q.element_size())
    training = needs_gradient(q, k, v, bias)
    fixed = sequences * q.shape[2] * (v.shape[3] * q.element_size() + wide)
    if training:
        fixed += _gradient_bytes(q, k, v)
    if bias is not None and bias.requires_grad:
        fixed += bias.numel() * wide
    if dropout:
        fixed += 8 * (sequences * q.shape[2] + k.shape[2])  # numbers of rows and keys
    if torch.compiler.is_compiling():
        return fixed + room * tile_copies(training, dropout)
    return fixed + tiles_workspace(
        sequences, q.shape[2], k.shape[2], q.shape[3], v.shape[3], room, training, dropout, wide
    )


def _gradient_bytes(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Those of queries, keys and values: summed in single precision, and then as they are asked for."""
    numbers = q.numel() + k.numel() + v.numel()
    return numbers * (q.element_size() if q.element_size() >= 4 else 4 + q.element_size())


def within_budget(
    methods: Sequence[str],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    bias: Tensor | None,
    dropout: float,
    budget: MemoryBudget,
) -> str:
    """The first of ``methods``, "fused" or "chunked", that fits the budget.

    Raises:
        ValueError: when none does, with the bytes that would do.
    """
    limit = read_bytes("memory_budget", budget)
    if limit is None:
        return methods[0]
    needed = {}
    for method in methods:
        if method == "fused":
            needed[method] = fused_bytes(q, k, v, key_mask)
        else:
            needed[method] = chunked_bytes(q, k, v, bias, dropout > 0.0, LEAST_ROOM)
        if needed[method] <= limit:
            return method
    raise over_budget(limit, needed)


def room_for_scores(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, budget: MemoryBudget) -> int:
    """The bytes that the scores of a tile may have within a budget that "chunked" fits."""
    limit = read_bytes("memory_budget", budget)
    if limit is None:
        return TILE_BYTES
    if torch.compiler.is_compiling():
        training = needs_gradient(q, k, v, bias)
        left = limit - chunked_bytes(q, k, v, bias, dropout > 0.0, 0)
        return max(LEAST_ROOM, min(TILE_BYTES, left // tile_copies(training, dropout > 0.0)))
    return _room(lambda room: chunked_bytes(q, k, v, bias, dropout > 0.0, room), limit)


def _room(taken: Callable[[int], int], limit: int) -> int:
    """The most room, of those halved from the largest, with which what is taken stays within the limit."""
    room = TILE_BYTES
    while room > LEAST_ROOM and taken(room) > limit:
        room //= 2
    return room


def over_budget(limit: int, needed: dict[str, int], others: Sequence[Scope] | None = None) -> ValueError:
    """The error of a budget that cannot be met.

    Args:
        limit: the budget.
        needed: the least bytes of every method that could serve.
        others: the scopes that would fit; None where there is no scope to choose.
    """
    takes = " and ".join(f"{method!r} takes at least {least}" for method, least in needed.items())
    smallest = min(needed.values())
    message = f"`memory_budget` of {limit} bytes cannot be met: {takes}, so that {smallest} is the smallest that works"
    if others:
        message += f"; within {limit} bytes there would be the scopes {', '.join(map(str, others))}"
    elif others is not None:
        message += "; no scope would fit, since the output and, in training, the gradients take the most of it"
    return ValueError(message)


def cells_bytes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    joint: bool,
    dropout: bool,
    shape: Sequence[int],
    scopes: Sequence[str],
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
    room: int,
) -> int:
    """The bytes beyond q, k and v that attention within cells takes; ``scopes`` run after one another.

    Arguments as of `attn3d.attention.cell_operators.attend_cells`; ``joint`` is whether ``table`` is of all offsets.
    """
    training = needs_gradient(q, k, v, table)
    of_axes = None if joint else table
    wide = max(4, q.element_size())
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    fixed = len(scopes) * rows * (v.shape[3] * q.element_size() + wide)
    if len(scopes) > 1:  # they are weighed, stacked and summed
        fixed += (2 * len(scopes) + 1) * rows * v.shape[3] * wide
    if training:
        fixed += min(2, len(scopes)) * _gradient_bytes(q, k, v)
    if torch.compiler.is_compiling():
        return fixed + room * tile_copies(training, dropout)
    run = max(
        cells_workspace(q, v, of_axes, dropout, shape, scope, size, dilation, shift, room, training) for scope in scopes
    )
    if joint:  # the bias of the pairs of a cell, for every sequence, and its gradient
        pairs = math.prod(min(along, extent) for along, extent in zip(size, shape, strict=True)) ** 2
        fixed += (4 if training else 2) * q.shape[0] * q.shape[1] * pairs * wide
    # Copies on the way to and from a run, which count where it is small.
    return fixed + run * (12 if training and of_axes is not None else 11) // 8


def fused_cells_bytes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    shape: Sequence[int],
    kind: str,
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
) -> int:
    """The bytes beyond q, k and v that PyTorch's kernel takes on all cells at once; arguments as of `axis_cells`."""
    if torch.compiler.is_compiling():
        return fused_bytes(q, k, v, None)
    queries = keys = 1
    width = q.shape[3]
    for along, step, extent in zip(size, dilation, shape, strict=True):
        of_queries, of_keys, *_ = axis_cells(kind, along, step, shift, extent)
        queries, keys = queries * of_queries.numel(), keys * of_keys.numel()
        if table is not None or axis_adds(kind, along, shift, extent):
            width += of_queries.shape[1]
    width = max(width, v.shape[3])
    numbers = 2 * (queries + keys) * width + (queries + keys + q.shape[2]) * max(q.shape[3], v.shape[3])
    if needs_gradient(q, k, v, table):
        numbers += 2 * (queries + 2 * keys) * width
    indices = 8 * (queries + 2 * keys + q.shape[2])
    return q.shape[0] * q.shape[1] * q.element_size() * numbers + indices + fused_workspace(q, k, False)


def pooling_bytes(q: Tensor, k: Tensor, v: Tensor, shape: Sequence[int], stride: Sequence[int]) -> int:
    """The bytes that the means of keys and values take, and in training the gradients of what they are means of."""
    whole = k.numel() + v.numel()
    first = -(-shape[0] // stride[0]) * whole // shape[0]
    numbers = 2 * first + (whole if needs_gradient(q, k, v) else 0)
    return numbers * k.element_size()


def means_like(k: Tensor, v: Tensor, shape: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tensors without memory that have the sizes of the means of keys and values."""
    means = math.prod(pooled_shape(list(shape), list(stride)))
    of_keys, of_values = (
        x.new_empty([*x.shape[:2], means, x.shape[3]], device="meta", requires_grad=x.requires_grad) for x in (k, v)
    )
    return of_keys, of_values


def least_bytes(
    scope: Scope,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    joint: bool,
    dropout: bool,
    shape: Sequence[int],
) -> int:
    """The smallest budget with which a scope over a volume of shape S can be computed, by the method "chunked"."""
    kind = name_of(scope)
    size = scope.per_axis(len(shape)) or [1] * len(shape)
    if kind == "global":
        return chunked_bytes(q, k, v, None, dropout, LEAST_ROOM)
    if kind == "pooled_keys":
        means = means_like(k, v, shape, size)
        return chunked_bytes(q, *means, None, dropout, LEAST_ROOM) + pooling_bytes(q, k, v, shape, size)
    shift = bool(getattr(scope, "shift", False))
    scopes = scopes_of_axes(kind, len(shape))
    dilation = scope.dilation_per_axis(len(shape))
    return cells_bytes(q, k, v, table, joint, dropout, shape, scopes, size, dilation, shift, LEAST_ROOM)


def scopes_of_axes(kind: str, axes: int) -> list[str]:
    """What `axis_cells` is asked for along every axis, joined by commas; one for every line of the scope "axial"."""
    if kind != "axial":
        return [",".join([kind] * axes)]
    return [",".join("line" if other == axis else "point" for other in range(axes)) for axis in range(axes)]


def room_for_cells(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    joint: bool,
    dropout: bool,
    shape: Sequence[int],
    scopes: list[str],
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
    budget: MemoryBudget,
) -> int:
    """The bytes that the scores of a run of cells may have within a budget that the smallest run fits."""
    limit = read_bytes("memory_budget", budget)
    if limit is None:
        return TILE_BYTES
    if torch.compiler.is_compiling():
        return room_for_scores(q, k, v, None, float(dropout), budget)

    def taken(room: int) -> int:
        return cells_bytes(q, k, v, table, joint, dropout, shape, scopes, size, dilation, shift, room)

    return _room(taken, limit)


def scopes_within(limit: int, q: Tensor, k: Tensor, v: Tensor, dropout: bool, shape: Sequence[int]) -> list[Scope]:
    """Those of some common scopes that fit the budget."""
    return [scope for scope in _OTHERS if least_bytes(scope, q, k, v, None, False, dropout, shape) <= limit]
