"""Attention within the groups of a pattern: gather a few groups, attend, write back; again in backward.

No more is alive than a few groups beside queries, keys, values and output. A query that is in several groups, as on
the lines of `Axial`, gets one softmax over all their keys: parts are merged by their log-sum-exp. Backward needs no
merging, since with the output and the log-sum-exp of the whole softmax every group gives its share of the gradients.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn3d.attention import sdpa, tiled
from attn3d.attention.groups import Groups
from attn3d.attention.memory import TILE_BYTES, largest_tile, needs_grad, result_bytes


class Way(NamedTuple):
    """How groups are computed.

    Attributes:
        fused: by the CPU's kernel; else by tiles.
        scale: of the products.
        dropout: probability of dropping a weight.
        run_bytes: what may be alive at once of the groups that are gathered.
        token_bytes: what a token takes of that in a backward pass: queries, keys and values, output and gradients.
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
    """softmax(scale q k^T + bias) v over the keys that each query's groups have.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, d_v).
        groups: of a pattern. A token that is a query of none has an output that means nothing.
        biases: of each entry of ``groups``, (H, w_q, w_k), or None.
        key_mask: (B, N), true where a key may be seen; it is served by tiles.
        seed: of the dropout; None without.
        fused: by PyTorch's kernel; else by tiles. On a CPU a bias may be learnt with it too.
        scale: of the products.
        dropout: probability of dropping a weight.
        budget: bytes beside q, k and v.

    Returns:
        (B, H, N, d_v).

    Raises:
        ValueError: when the budget cannot be met, with the smallest that works, or the tokens are not the groups'.
    """
    if math.prod(groups[0].shape) != q.shape[2]:
        raise ValueError(f"`shape` must have {q.shape[2]} voxels, as many as there are tokens, got {groups[0].shape}")
    width = v.shape[3]
    if fused and q.shape[3] != width:
        q, k, v = sdpa.equal_widths(q, k, v)
    # A token's heads lie together and are gathered as one.
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    token_bytes = 4 * max(4, q.element_size()) * q.shape[1] * q.shape[3]
    run_bytes = TILE_BYTES
    if budget is not None:
        run_bytes = _run_bytes(budget, q, k, v, groups, biases, fused, dropout, token_bytes)
    way = Way(fused, scale, dropout, run_bytes, token_bytes)
    key_mask = None if key_mask is None else key_mask.flatten()
    out = _Grouped.apply(*rows, key_mask, seed, groups, way, *biases)
    return out.unflatten(0, (-1, q.shape[2])).transpose(1, 2)[..., :width]


def _run_bytes(
    budget: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: list[Groups],
    biases: list[Tensor | None],
    fused: bool,
    dropout: float,
    token_bytes: int,
) -> int:
    """The largest `Way.run_bytes` within the budget."""
    results = result_bytes(q, k, v, needs_grad(q, k, v, *biases))
    results += 4 * v.numel() * groups[-1].again  # an output in single precision, to which parts are merged
    # A bias, its gradient and copies of both in single precision, and the places of its entries in the table.
    results += sum(5 * bias.nbytes + 16 * bias[0].numel() for bias in biases if bias is not None)
    heads, number = q.shape[1], max(4, q.element_size())

    def taken(run_bytes: int) -> int:
        runs = []
        for one in groups:
            group_bytes = token_bytes * sum(one.size)
            count = max(1, run_bytes // group_bytes)
            tile = tiled.tile_of(run_bytes, heads * count, *one.size)
            scores = 2 * sdpa.kernel_bytes(*one.size, q.shape[3]) if fused else 0
            if not fused or needs_grad(*biases):
                pairs = heads * count * tile.queries * tile.keys
                scores += number * pairs * (8 if dropout > 0.0 else 2)
            # What is gathered, twice for the copies on the way to and from the kernel, once more for those of tiles.
            copies = 2 if fused and not needs_grad(*biases) else 3
            masks = 0 if one.seen is None else 2 * number * one.seen.size
            runs.append(count * (copies * group_bytes + 32 * sum(one.size)) + scores + masks)
        return results + max(runs)

    return largest_tile(budget, taken)


class _Grouped(torch.autograd.Function):
    """Attention of rows, (B N, H, d): one for every token of the batch."""

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
        for one, bias in zip(groups, biases, strict=True):
            added = None if bias is None and one.seen is None else _added(one, bias, q, q.dtype if way.fused else wide)
            for queries, keys in one.runs(way.run_bytes // way.token_bytes, q):
                parts = _take(q, queries), _take(k, keys), _take(v, keys)
                if way.fused:
                    part, sums = sdpa.kernel_forward(*parts, 0.0, False, attn_mask=added, scale=way.scale)
                else:
                    dropped = _dropout(q, one, queries, keys, seed, way.dropout)
                    mask = _seen(key_mask, keys)
                    part, sums = tiled.forward(*parts, way.scale, _tile(*parts, way), added, mask, dropped)
                sums = sums.unsqueeze(3)
                if one.again:
                    part, sums = tiled.merge((_take(out, queries), _take(logsumexp, queries)), (part, sums))
                _put(out, queries, part)
                _put(logsumexp, queries, sums)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, key_mask, seed, out, logsumexp, *biases)
        ctx.groups, ctx.way = groups, way
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            tiled.refuse_second_derivative()
        q, k, v, key_mask, seed, out, logsumexp, *biases = ctx.saved_tensors
        groups, wide, learnt = ctx.groups, logsumexp.dtype, any(ctx.needs_input_grad[7:])
        way = ctx.way._replace(fused=ctx.way.fused and not learnt)  # the kernel gives no gradient of a bias
        add_q = groups[-1].again
        add_k = add_q or not all(one.partition for one in groups)
        grad_q, grad_k, grad_v = _gradient(q, add_q, wide), _gradient(k, add_k, wide), _gradient(v, add_k, wide)
        grad_biases: list[Any] = [torch.zeros_like(bias[None], dtype=wide) if learnt else None for bias in biases]
        for one, bias, grad_bias in zip(groups, biases, grad_biases, strict=True):
            added = _added(one, bias, q, q.dtype if way.fused else wide)
            for queries, keys in one.runs(way.run_bytes // way.token_bytes, q):
                grad, sums = _take(grad_out, queries), _take(logsumexp, queries).squeeze(3)
                parts = _take(q, queries), _take(k, keys), _take(v, keys)
                if way.fused:
                    grads = sdpa.kernel_backward(
                        grad, *parts, _take(out, queries), sums, 0.0, False, attn_mask=added, scale=way.scale
                    )
                else:
                    tile, dropped = _tile(*parts, way), _dropout(q, one, queries, keys, seed, way.dropout)
                    grads = tiled.backward(
                        grad, None, *parts, _take(out, queries), sums, way.scale, tile,
                        added, _seen(key_mask, keys), dropped, grad_bias,
                    )  # fmt: skip
                _put(grad_q, queries, grads[0], add_q)
                _put(grad_k, keys, grads[1], add_k)
                _put(grad_v, keys, grads[2], add_k)
        if learnt:
            grad_biases = [grad[0].to(bias.dtype) for grad, bias in zip(grad_biases, biases, strict=True)]
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), *[None] * 4, *grad_biases


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows (B N, H, d) at the tokens (G, w), as (G, H, w, d)."""
    return x.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).transpose(1, 2)


def _seen(key_mask: Tensor | None, keys: Tensor) -> Tensor | None:
    """Which of the keys (G, w) may be seen, of a mask (B N,)."""
    return None if key_mask is None else key_mask[keys]


def _put(x: Tensor, tokens: Tensor, part: Tensor, add: bool = False) -> None:
    """Writes (G, H, w, d) to the tokens (G, w) of rows (B N, H, d), or adds it to what is there."""
    write = x.index_add_ if add else x.index_copy_
    write(0, tokens.flatten(), part.transpose(1, 2).flatten(0, 1).to(x.dtype))


def _gradient(x: Tensor, add: bool, wide: torch.dtype) -> Tensor:
    """Memory for a gradient, which is written, or if ``add`` added up."""
    return x.new_zeros(list(x.shape), dtype=wide) if add else x.new_empty(list(x.shape))


def _added(groups: Groups, bias: Tensor | None, q: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, (1, H or 1, w_q, w_k)."""
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
    """Which weights are dropped, by the numbers that rows and keys have in the whole volume."""
    if seed is None:
        return None
    voxels, heads = math.prod(groups.shape), torch.arange(q.shape[1], device=q.device)
    rows = (queries // voxels * q.shape[1])[:, None] + heads[:, None]  # the number of the sequence, (G, H, w)
    return tiled.Dropout(probability, seed, rows * voxels + (queries % voxels)[:, None], (keys % voxels)[:, None])
