"""Attention within the cells of a scope as an operator of PyTorch.

It gathers a few cells at a time, and so never holds the tokens twice. As `attend_tiled`, it returns the
log-sum-exp of the rows too, is differentiable in it, and has no second derivative.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attn3d.attention import tiles
from attn3d.attention.cells import (
    all_cells,
    axis_adds,
    axis_cells,
    key_features,
    pair_bias,
    query_features,
    token_index,
)
from attn3d.attention.memory import tile_within
from attn3d.attention.operators import logsumexp_like, refuse_second_derivative, row_numbers
from attn3d.capture import at_least_single


class CellsOf:
    """The cells of a scope over a volume, and what is gathered of a run of them.

    Args:
        q: (B, H, N, d), for its dtype and device.
        table: the position bias of all axes, (H, sum of 2 size - 1), or None.
        shape: S, whose product is N.
        scope: the kind of every axis, see `axis_cells`, joined by commas.
        size: along every axis.
        dilation: along every axis.
        shift: whether windows are shifted.
    """

    def __init__(
        self,
        q: Tensor,
        table: Tensor | None,
        shape: Sequence[int],
        scope: str,
        size: Sequence[int],
        dilation: Sequence[int],
        shift: bool,
    ) -> None:
        if math.prod(shape) != q.shape[2]:
            raise ValueError(f"`shape` must have {q.shape[2]} voxels, as many as there are tokens, got {list(shape)}")
        kinds = scope.split(",")
        axes = [
            axis_cells(kind, along, step, shift, extent)
            for kind, along, step, extent in zip(kinds, size, dilation, shape, strict=True)
        ]
        queries, keys, distances, seen = zip(*axes, strict=True)
        self.shape = list(shape)
        self.queries = [positions.to(q.device) for positions in queries]
        self.keys = [positions.to(q.device) for positions in keys]
        self.distances = [distance.to(q.device) for distance in distances]
        self.seen = [pairs.to(q.device) for pairs in seen]
        tables = [None] * len(axes) if table is None else table.split(table_lengths(size), 1)
        wide = torch.promote_types(q.dtype, torch.float32)
        self.biases = [
            pair_bias(distance, pairs, along).to(wide)
            for distance, pairs, along in zip(self.distances, self.seen, tables, strict=True)
        ]
        self.adds = [
            table is not None or axis_adds(kind, along, shift, extent)
            for kind, along, extent in zip(kinds, size, shape, strict=True)
        ]
        self.widths = [positions.shape[1] for positions in self.queries]
        self.places = all_cells([positions.shape[0] for positions in self.queries]).to(q.device)
        self.features = query_features(self.widths, self.adds, self.biases[0]) if any(self.adds) else None

    def runs(self, room: int, sequences: int) -> tuple[list[Tensor], tiles.Tile]:
        """The cells' places, as many at a time as there is room for, and the tile of scores."""
        queries, keys = math.prod(self.widths), math.prod(positions.shape[1] for positions in self.keys)
        tile = tile_within(room, sequences, queries, keys)
        whole = tile == tiles.Tile(queries, keys)
        count = max(1, room // (4 * sequences * queries * keys)) if whole else 1
        return list(self.places.split(count)), tile

    def query_index(self, places: Tensor) -> Tensor:
        """The tokens that are queries of the cells at ``places``, (G, w_q)."""
        return token_index(self.queries, self.shape, places)

    def key_index(self, places: Tensor) -> Tensor:
        """The tokens that are keys of the cells at ``places``, (G, w_k)."""
        return token_index(self.keys, self.shape, places)

    def widen_queries(self, q: Tensor) -> Tensor:
        """(B H, G, w_q, d) and the features of the queries behind it."""
        if self.features is None:
            return q
        return torch.cat([q, self.features.expand(q.shape[0], q.shape[1], -1, -1)], 3)

    def widen_keys(self, k: Tensor, places: Tensor, heads: int) -> Tensor:
        """(B H, G, w_k, d) and the features of the keys behind it."""
        if self.features is None:
            return k
        features = key_features(self.biases, self.adds, places).transpose(0, 1).to(k.dtype)
        features = features.expand(heads, -1, -1, -1).unsqueeze(0)
        return torch.cat([k, features.expand(k.shape[0] // heads, -1, -1, -1, -1).flatten(0, 1)], 3)

    def table_gradient(self, bias_gradients: list[Tensor], heads: int, size: Sequence[int]) -> Tensor:
        """The gradient of the position bias from those of the axes' pairs, (G_a, H, w_q, w_k) each."""
        parts = []
        for axis, length in enumerate(table_lengths(size)):
            seen = self.seen[axis]
            entry = self.distances[axis][seen] + length // 2
            part = bias_gradients[axis].transpose(0, 1)[:, seen]
            parts.append(part.new_zeros([heads, length]).index_add_(1, entry, part))
        return torch.cat(parts, 1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, N, d) at the tokens (G, w) as (B H, G, w, d); in place of an absent token, the first."""
    return x.index_select(2, index.clamp(min=0).flatten()).unflatten(2, index.shape).flatten(0, 1)


def table_lengths(size: Sequence[int]) -> list[int]:
    """How many entries a position bias has along every axis: distances from 1 - size to size - 1."""
    return [2 * along - 1 for along in size]


def _dropout_of(
    q: Tensor, query_index: Tensor, key_index: Tensor, probability: float, seed: Tensor | None
) -> tiles.Dropout | None:
    if seed is None:
        return None
    rows = gather(row_numbers(q).unsqueeze(3), query_index).squeeze(3)
    return tiles.Dropout(probability, seed, rows, key_index.unsqueeze(0))


def _place(into: Tensor, index: Tensor, part: Tensor) -> None:
    """Writes (B H, G, w, ...) to the tokens (G, w) of (B, H, N, ...); absent ones are left out."""
    present = (index >= 0).flatten()
    part = part.unflatten(0, into.shape[:2]).flatten(2, 3)
    into.index_copy_(2, index.flatten()[present], part[:, :, present].to(into.dtype))


def _bias_of_heads(bias: Tensor | None, batch: int) -> Tensor | None:
    """(1, H, w_q, w_k) as (B H, 1, w_q, w_k)."""
    return None if bias is None else bias.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)


@torch.library.custom_op("attn3d::attend_cells", mutates_args=())
def attend_cells(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    shape: Sequence[int],
    scope: str,
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
    scale: float,
    dropout: float,
    room: int,
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + position bias) v within the cells, and the log-sum-exp of the rows.

    Args:
        q: (B, H, N, d), as k and v, the tokens of the volume.
        k: see q.
        v: see q.
        table: see `CellsOf`, as shape, scope, size, dilation and shift.
        bias: of the pairs of a cell, the same in all cells, (1, H, w_q, w_k), or None.
        seed: of the dropout; None without.
        shape: see table.
        scope: see table.
        size: see table.
        dilation: see table.
        shift: see table.
        scale: of the products.
        dropout: probability of dropping a weight.
        room: bytes of the scores that are alive at once.
    """
    cells = CellsOf(q, table, shape, scope, size, dilation, shift)
    runs, tile = cells.runs(room, q.shape[0] * q.shape[1])
    out, logsumexp = q.new_empty([*q.shape[:3], v.shape[3]]), logsumexp_like(q)
    pair = _bias_of_heads(bias, q.shape[0])
    for places in runs:
        queries, keys = cells.query_index(places), cells.key_index(places)
        part, part_logsumexp = tiles.forward(
            cells.widen_queries(at_least_single(gather(q, queries)) * scale),
            cells.widen_keys(at_least_single(gather(k, keys)), places, q.shape[1]),
            gather(v, keys),
            1.0,
            tile,
            pair,
            None,
            _dropout_of(q, queries, keys, dropout, seed),
        )
        _place(out, queries, part)
        _place(logsumexp, queries, part_logsumexp)
    return out, logsumexp


@attend_cells.register_fake
def _(q, k, v, *_):
    return q.new_empty([*q.shape[:3], v.shape[3]]), logsumexp_like(q)


@torch.library.custom_op("attn3d::attend_cells_backward", mutates_args=())
def _attend_cells_backward(
    gradient: Tensor,
    gradient_logsumexp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    shape: Sequence[int],
    scope: str,
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
    scale: float,
    dropout: float,
    room: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cells = CellsOf(q, table, shape, scope, size, dilation, shift)
    runs, tile = cells.runs(room, q.shape[0] * q.shape[1])
    wide, heads, width = logsumexp.dtype, q.shape[1], q.shape[3]
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.zeros_like(k, dtype=wide, memory_format=torch.contiguous_format)
    grad_v = torch.zeros_like(v, dtype=wide, memory_format=torch.contiguous_format)
    grad_biases = [cell_bias.new_zeros(list(cell_bias.shape)) for cell_bias in cells.biases]
    pair = _bias_of_heads(bias, q.shape[0])
    grad_pair = None if pair is None else torch.zeros_like(pair, dtype=wide)
    for places in runs:
        queries, keys = cells.query_index(places), cells.key_index(places)
        absent = queries < 0
        part_logsumexp = gather(logsumexp.unsqueeze(3), queries).squeeze(3)
        part_q, part_k, part_v = tiles.backward(
            gather(gradient, queries),
            None if gradient_logsumexp is None else gather(gradient_logsumexp.unsqueeze(3), queries).squeeze(3),
            cells.widen_queries(at_least_single(gather(q, queries)) * scale),
            cells.widen_keys(at_least_single(gather(k, keys)), places, heads),
            gather(v, keys),
            gather(out, queries),
            part_logsumexp.masked_fill(absent, float("inf")),  # an absent query has no part
            1.0,
            tile,
            pair,
            None,
            _dropout_of(q, queries, keys, dropout, seed),
            grad_pair,
        )
        _place(grad_q, queries, part_q[..., :width] * scale)
        index = keys.clamp(min=0).flatten()  # what an absent key gets is 0
        grad_k.index_add_(2, index, part_k[..., :width].unflatten(0, q.shape[:2]).flatten(2, 3))
        grad_v.index_add_(2, index, part_v.unflatten(0, q.shape[:2]).flatten(2, 3))
        if table is not None:
            _add_bias_gradients(grad_biases, cells, places, part_k[..., width:], heads)
    grad_table = q.new_empty([0]) if table is None else cells.table_gradient(grad_biases, heads, size).to(table.dtype)
    grad_bias = q.new_empty([0]) if bias is None else grad_pair.unflatten(0, q.shape[:2]).sum(0, keepdim=True)
    grad_bias = grad_bias if bias is None else grad_bias.squeeze(2).to(bias.dtype)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_table, grad_bias


def _add_bias_gradients(
    grad_biases: list[Tensor], cells: CellsOf, places: Tensor, of_features: Tensor, heads: int
) -> None:
    """From the gradient of the key's features, (B H, G, w_k, F), adds to those of the axes' pairs."""
    of_features = of_features.unflatten(0, (-1, heads)).sum(0)
    key_widths = [positions.shape[1] for positions in cells.keys]
    for axis, part in enumerate(of_features.split(cells.widths, 3)):
        others = [2 + other for other in range(len(key_widths)) if other != axis]
        part = part.unflatten(2, key_widths)
        part = part.sum(others) if others else part  # (H, G, w_k, w_q) of this axis
        grad_biases[axis].index_add_(0, places[:, axis], part.permute(1, 0, 3, 2))


@_attend_cells_backward.register_fake
def _(gradient, gradient_logsumexp, q, k, v, out, logsumexp, table, bias, *_):
    grad_table = q.new_empty([0]) if table is None else torch.empty_like(table)
    grad_bias = q.new_empty([0]) if bias is None else torch.empty_like(bias)
    return q.new_empty(list(q.shape)), k.new_empty(list(k.shape)), v.new_empty(list(v.shape)), grad_table, grad_bias


def _save(ctx, inputs, output):
    q, k, v, table, bias, seed, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, table, bias, seed, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradient, gradient_logsumexp):
    q, k, v, table, bias, seed, out, logsumexp = ctx.saved_tensors
    gradient = torch.zeros_like(out) if gradient is None else gradient
    grad_q, grad_k, grad_v, grad_table, grad_bias = _attend_cells_backward(
        gradient, gradient_logsumexp, q, k, v, out, logsumexp, table, bias, seed, *ctx.constants
    )
    grad_table = grad_table if ctx.needs_input_grad[3] else None
    grad_bias = grad_bias if ctx.needs_input_grad[4] else None
    return grad_q, grad_k, grad_v, grad_table, grad_bias, *[None] * 9


attend_cells.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivative(_attend_cells_backward)
