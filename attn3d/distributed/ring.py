"""Exact attention with keys and values that go round a ring of ranks (arXiv 2310.01889).

Every rank keeps its queries and meets one shard of the keys after the other; the parts of the softmax are merged by
their log-sum-exp. Backward sends keys and values round once more, with their gradients, so that a rank keeps nothing
but its own tokens in between.
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
    """softmax(scale q k^T) v over the keys of all ranks.

    Args:
        q: the queries of this rank, (B, H, N, d).
        k: its keys, (B, H, M, d).
        v: its values, (B, H, M, d_v).
        queries: the largest N of all ranks.
        counts: M of every rank.
        scale: of the products.
        budget: bytes that this may take beside q, k and v of the largest shard.
        group: the ranks.

    Returns:
        (B, H, N, d_v).

    Raises:
        ValueError: on every rank alike, when the budget cannot be met.
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
                part, logsumexp = tiled.forward(q, keys, values, scale, tile)
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
            part_q, *parts = tiled.backward(grad, None, q, keys, values, out, logsumexp, scale, tile)
            grad_q = part_q.add_(grad_q)
            # The gradients of a shard of keys travel with it, from rank to rank, until they are home.
            parts = [part.add_(before) for part, before in zip(parts, grads, strict=True)]
            grads, works = _pass_on(parts, counts, step, group)
            wait(works)
        grad_k, grad_v = grads
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _shards(k: Tensor, v: Tensor, counts: list[int], group: dist.ProcessGroup) -> Iterator[list[Tensor]]:
    """The keys and values of one rank after another, while the next are on their way."""
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
    """Begins to send what this rank has at a step to the next rank, and to receive what the one before it has."""
    size, rank = group.size(), group.rank()
    if size == 1:
        return block, []
    count = counts[(rank - step - 1) % size]
    following = [part.new_empty([*part.shape[:2], count, part.shape[3]]) for part in block]
    sent = [((rank + 1) % size, part) for part in block]
    return following, post(sent, [((rank - 1) % size, part) for part in following], group)
