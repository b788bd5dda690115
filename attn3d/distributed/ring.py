"""Exact ring attention: keys and values are passed around a ring of ranks (arXiv 2310.01889).

Every rank keeps its queries and attends to one shard of the keys after another; the parts of the softmax are merged by
their log-sum-exp. Backward passes keys and values around again, with their gradients, so that a rank saves only its own
tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attn3d.attention import tiled
from attn3d.attention.memory import needs_grad
from attn3d.attention.operator import tile_within
from attn3d.capture import at_least_single, without_autocast
from attn3d.distributed.collectives import post, refuse_second_derivative, wait


@without_autocast
def attend_ring(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: int,
    counts: list[int],
    scale: float,
    budget: int | None,
    group: dist.ProcessGroup,
) -> Tensor:
    """Computes softmax(scale q k^T) v over the keys of all ranks.

    Args:
        q: the queries of this rank, (B, H, N, d).
        k: its keys, (B, H, M, d).
        v: its values, (B, H, M, d_v).
        queries: the largest N of all ranks.
        counts: M of every rank.
        scale: factor of the products q k^T.
        budget: bytes in addition to q, k and v of the largest shard.
        group: the process group.

    Returns:
        (B, H, N, d_v).

    Raises:
        ValueError: on every rank, if the budget is too small.
    """
    training = needs_grad(q, k, v)
    largest_q = q.new_empty([*q.shape[:2], queries, q.shape[3]], device="meta")
    largest_k, largest_v = (x.new_empty([*x.shape[:2], max(counts), x.shape[3]], device="meta") for x in (k, v))
    tile = tile_within(budget, largest_q, largest_k, largest_v, None, 0.0, training)
    return _Ring.apply(q, k, v, counts, scale, tile, group)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        counts: list[int],
        scale: float,
        tile: tiled.Tile,
        group: dist.ProcessGroup,
    ) -> Tensor:
        k, v = k.contiguous(), v.contiguous()
        total: Any = None  # the output and the log-sum-exp of the shards so far
        for keys, values in _shards(k, v, counts, group):
            if keys.shape[2] > 0:
                part, logsumexp = tiled.forward(q, keys, values, tiled.Softmax(scale), tile)
                part = at_least_single(part), logsumexp.unsqueeze(3)
                total = part if total is None else tiled.merge(total, part)
        out, logsumexp = total[0].to(q.dtype), total[1].squeeze(3)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.constants = counts, scale, tile, group
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, out, logsumexp = ctx.saved_tensors
        counts, scale, tile, group = ctx.constants
        grad_q: Any = 0
        grads: Any = [0, 0]
        for step, (keys, values) in enumerate(_shards(k, v, counts, group)):
            part_q, *parts = tiled.backward(grad, q, keys, values, out, logsumexp, tiled.Softmax(scale), tile)
            grad_q = part_q.add_(grad_q)
            # The gradients of a shard of keys are passed on with it until they reach its rank.
            parts = [part.add_(before) for part, before in zip(parts, grads, strict=True)]
            grads, works = _pass_on(parts, counts, step, group)
            wait(works)
        grad_k, grad_v = grads
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _shards(k: Tensor, v: Tensor, counts: list[int], group: dist.ProcessGroup) -> Iterator[list[Tensor]]:
    """Yields the keys and values of one rank after another, while the next are being received."""
    block = [k, v]
    for step in range(group.size() - 1):
        following, works = _pass_on(block, counts, step, group)
        yield block
        wait(works)
        block = following
    yield block


def _pass_on(
    block: list[Tensor], counts: list[int], step: int, group: dist.ProcessGroup
) -> tuple[list[Tensor], list[dist.Work]]:
    """Starts to send the current block to the next rank, and to receive that of the previous rank."""
    size, rank = group.size(), group.rank()
    if size == 1:
        return block, []
    count = counts[(rank - step - 1) % size]
    following = [part.new_empty([*part.shape[:2], count, part.shape[3]]) for part in block]
    sent = [((rank + 1) % size, part) for part in block]
    return following, post(sent, [((rank - 1) % size, part) for part in following], group)
