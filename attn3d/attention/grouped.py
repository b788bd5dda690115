"""Attention within the groups of a pattern: gathers a few groups, attends and writes back, in forward and backward.

Only a few groups are in memory at a time, in addition to queries, keys, values and output. A query in several groups,
as with `Axial`, gets one softmax over the keys of all of them: the parts are merged by their log-sum-exp. Backward
needs no merging: given the output and the log-sum-exp of the whole softmax, the gradients are sums over the groups.
"""

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from attn3d.attention import sdpa, tiled
from attn3d.attention.groups import Groups
from attn3d.attention.memory import TILE_BYTES, largest_tile, needs_grad, result_bytes


class Way(NamedTuple):
    """How groups are computed.

    Attributes:
        fused: whether to use the CPU kernel; tiles otherwise.
        scale: factor of the products q k^T.
        dropout: probability of dropping a weight.
        run_bytes: the most bytes of gathered groups in memory at a time.
        token_bytes: bytes per gathered token in backward: queries, keys and values, output and gradients.
    """

    fused: bool
    scale: float
    dropout: float
    run_bytes: int
    token_bytes: int


def attend_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: list[Groups],
    biases: list[Tensor | None],
    key_mask: Tensor | None,
    seed: Tensor | None,
    fused: bool,
    scale: float,
    dropout: float,
    budget: int | None,
) -> Tensor:
    """Computes softmax(scale q k^T + bias) v over the keys in the groups of each query.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, d_v).
        groups: groups of a pattern. The output of a token that is not a query of any group is undefined.
        biases: for each entry of ``groups``, its bias (H, w_q, w_k) or None.
        key_mask: (B, N), true where a key may be seen; only supported with tiles.
        seed: seed of the dropout; None without dropout.
        fused: whether to use PyTorch's kernel; tiles otherwise. On a CPU, the bias may be learnt in both cases.
        scale: factor of the products q k^T.
        dropout: probability of dropping a weight.
        budget: bytes in addition to q, k and v.

    Returns:
        (B, H, N, d_v).

    Raises:
        ValueError: if the budget is too small (the message gives the smallest that works), or the number of tokens is
            not that of the groups.
    """
    if math.prod(groups[0].shape) != q.shape[2]:
        raise ValueError(f"`shape` must have {q.shape[2]} voxels, the number of tokens, got {groups[0].shape}")
    width, given = v.shape[3], (q, k, v)
    if fused and q.shape[3] != width:
        q, k, v = sdpa.equal_widths(q, k, v)
    # The heads of a token are adjacent in memory and gathered together.
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    token_bytes = 4 * max(4, q.element_size()) * q.shape[1] * max(q.shape[3], width)
    way = Way(fused, scale, dropout, TILE_BYTES, token_bytes)
    if budget is not None:
        way = way._replace(run_bytes=_run_bytes(budget, way, given, (q, k, v), groups, biases))
    key_mask = None if key_mask is None else key_mask.flatten()
    out = _Grouped.apply(*rows, key_mask, seed, groups, way, *biases)
    return out.unflatten(0, (-1, q.shape[2])).transpose(1, 2)[..., :width]


def _run_bytes(
    budget: int,
    way: Way,
    given: tuple[Tensor, ...],
    widened: tuple[Tensor, ...],
    groups: list[Groups],
    biases: list[Tensor | None],
) -> int:
    """Returns the largest `Way.run_bytes` within the budget.

    The budget includes the copies of the ``given`` q, k and v: ``widened`` to one head dimension, and with the heads of
    a token adjacent.
    """
    q, k, v = widened
    results = result_bytes(q, k, v, needs_grad(*given, *biases))
    results += sum(x.nbytes for x, own in zip(widened, given, strict=True) if x is not own)
    if q.shape[0] > 1:  # with several volumes, heads are made adjacent by a copy, also in the gradient of the output
        results += sum(x.nbytes for x in widened if x.stride(0) != x.shape[2] * x.stride(2))
        results += v.nbytes if needs_grad(*given) else 0
    if groups[-1].again:  # parts are merged into an output in single precision
        results += 4 * v.numel()
    # The bias, its gradient, copies of both in single precision, and the indices into its table.
    results += sum(5 * bias.nbytes + 16 * bias[0].numel() for bias in biases if bias is not None)
    heads, element_bytes = q.shape[1], max(4, q.element_size())
    tiles_needed = not way.fused or needs_grad(*biases)

    def taken(run_bytes: int) -> int:
        runs = []
        for batch in groups:
            group_bytes = way.token_bytes * sum(batch.size)
            count = max(1, run_bytes // group_bytes)
            tile = tiled.tile_of(run_bytes, heads * count, *batch.size)
            scores = 2 * sdpa.kernel_bytes(*batch.size, q.shape[3], q.dtype) if way.fused else 0
            if tiles_needed:
                pairs = heads * count * tile.queries * tile.keys
                scores += element_bytes * pairs * (8 if way.dropout > 0.0 else 2)
            # The gathered tokens and their copy for the kernel; tiles copy them once more.
            copies = 3 if tiles_needed else 2
            masks = 0 if batch.seen is None else 2 * element_bytes * batch.seen.size
            runs.append(count * (copies * group_bytes + 32 * sum(batch.size)) + scores + masks)
        return results + max(runs)

    return largest_tile(budget, taken)


class _Grouped(torch.autograd.Function):
    """Attention on rows (B N, H, d), one row for every token of the batch."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        tiled.refuse_forward_mode()

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Any,
        seed: Any,
        groups: Any,
        way: Any,
        *biases: Tensor | None,
    ) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = v.new_empty(list(v.shape), dtype=wide if groups[-1].again else v.dtype)
        logsumexp = q.new_empty([*q.shape[:2], 1], dtype=wide)
        for batch, bias in zip(groups, biases, strict=True):
            added = None
            if bias is not None or batch.seen is not None:
                added = _added(batch, bias, q, q.dtype if way.fused else wide)
            for queries, keys in batch.runs(way.run_bytes // way.token_bytes, q):
                parts = _take(q, queries), _take(k, keys), _take(v, keys)
                if way.fused:
                    part, sums = sdpa.kernel_forward(*parts, 0.0, False, attn_mask=added, scale=way.scale)
                else:
                    mask = None if key_mask is None else key_mask[keys]
                    dropped = _dropout(q, batch, queries, keys, seed, way.dropout)
                    softmax = tiled.Softmax(way.scale, added, mask, dropped)
                    part, sums = tiled.forward(*parts, softmax, _tile(*parts, way))
                sums = sums.unsqueeze(3)
                if batch.again:
                    part, sums = tiled.merge((_take(out, queries), _take(logsumexp, queries)), (part, sums))
                _put(out, queries, part)
                _put(logsumexp, queries, sums)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, key_mask, seed, out, logsumexp, *biases)
        ctx.groups, ctx.way = groups, way
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tiled.check_gradient(grad_out)
        q, k, v, key_mask, seed, out, logsumexp, *biases = ctx.saved_tensors
        groups, wide, learnt = ctx.groups, logsumexp.dtype, any(ctx.needs_input_grad[7:])
        way = ctx.way._replace(fused=ctx.way.fused and not learnt)  # the kernel has no gradient for a bias
        add_q = groups[-1].again
        add_k = add_q or not all(batch.partition for batch in groups)
        grad_q, grad_k, grad_v = _gradient(q, add_q, wide), _gradient(k, add_k, wide), _gradient(v, add_k, wide)
        grad_biases: list[Any] = [torch.zeros_like(bias[None], dtype=wide) if learnt else None for bias in biases]
        for batch, bias, grad_bias in zip(groups, biases, grad_biases, strict=True):
            added = _added(batch, bias, q, q.dtype if ctx.way.fused else wide)  # rounded as in forward
            for queries, keys in batch.runs(way.run_bytes // way.token_bytes, q):
                grad, sums = _take(grad_out, queries), _take(logsumexp, queries).squeeze(3)
                parts = _take(q, queries), _take(k, keys), _take(v, keys)
                if way.fused:
                    grads = sdpa.kernel_backward(
                        grad, *parts, _take(out, queries), sums, 0.0, False, attn_mask=added, scale=way.scale
                    )
                else:
                    mask = None if key_mask is None else key_mask[keys]
                    dropped = _dropout(q, batch, queries, keys, seed, way.dropout)
                    softmax = tiled.Softmax(way.scale, added, mask, dropped)
                    tile = _tile(*parts, way)
                    grads = tiled.backward(grad, *parts, _take(out, queries), sums, softmax, tile, grad_bias)
                _put(grad_q, queries, grads[0], add_q)
                _put(grad_k, keys, grads[1], add_k)
                _put(grad_v, keys, grads[2], add_k)
        if learnt:
            grad_biases = [grad[0].to(bias.dtype) for grad, bias in zip(grad_biases, biases, strict=True)]
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), *[None] * 4, *grad_biases


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """Gathers the tokens (G, w) of rows (B N, H, d), as (G, H, w, d)."""
    return x.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).transpose(1, 2)


def _put(x: Tensor, tokens: Tensor, part: Tensor, add: bool = False) -> None:
    """Writes (G, H, w, d) to the tokens (G, w) of rows (B N, H, d), or with ``add`` adds it to them."""
    write = x.index_add_ if add else x.index_copy_
    write(0, tokens.flatten(), part.transpose(1, 2).flatten(0, 1).to(x.dtype))


def _gradient(x: Tensor, add: bool, wide: torch.dtype) -> Tensor:
    """Allocates a gradient of zeros, in single precision if it is a sum (``add``)."""
    return x.new_zeros(list(x.shape), dtype=wide if add else x.dtype)  # not every row belongs to a group


def _added(groups: Groups, bias: Tensor | None, q: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Returns the bias of the scores with -inf for unseen pairs, (1, H or 1, w_q, w_k), or None."""
    added = None if bias is None else bias.unsqueeze(0).to(dtype)
    if groups.seen is None:
        return added
    if added is None:
        added = torch.zeros(1, 1, *groups.size, dtype=dtype, device=q.device)
    return added.masked_fill(torch.tensor(~groups.seen, device=q.device), -math.inf)


def _tile(q: Tensor, k: Tensor, v: Tensor, way: Way) -> tiled.Tile:
    return tiled.tile_of(way.run_bytes, q.shape[0] * q.shape[1], q.shape[2], k.shape[2])


def _dropout(
    q: Tensor, groups: Groups, queries: Tensor, keys: Tensor, seed: Tensor | None, probability: float
) -> tiled.Dropout | None:
    """Returns which weights are dropped, by the indices of rows and keys in the whole volume."""
    if seed is None:
        return None
    voxels, heads = math.prod(groups.shape), torch.arange(q.shape[1], device=q.device)
    sequences = (queries // voxels * q.shape[1])[:, None] + heads[:, None]  # index of (batch, head), (G, H, w)
    rows = sequences * voxels + (queries % voxels)[:, None]
    return tiled.Dropout(probability, seed, rows, (keys % voxels)[:, None])
