"""Exact attention with keys and values that go round (ring attention, arXiv 2310.01889).

Every rank keeps its queries and meets one shard of the keys after the other; the parts of the softmax are merged
by their log-sum-exp. Backward sends keys and values round once more, with their gradients, so that nothing but a
rank's own tokens is kept in between.
"""

import math

import torch
import torch.distributed as dist
from attn3d.attention.operators import attend_tiled
from attn3d.attention.sharded.collectives import post, refuse_second_derivative, wait
from torch import Tensor

from attn3d.attention import tiles
from attn3d.attention.memory import tile_within
from attn3d.capture import at_least_single


class Ring(torch.autograd.Function):
    """softmax(scale q k^T) v over the keys of all ranks."""

    @staticmethod
    def forward(
        context, q: Tensor, k: Tensor, v: Tensor, counts: list[int], scale: float, room: int, group: dist.ProcessGroup
    ) -> Tensor:
        """Attends.

        Args:
            context: of autograd.
            q: the queries of this rank, (B, H, N, d).
            k: its keys, (B, H, M, d).
            v: its values, (B, H, M, d_v).
            counts: M of every rank.
            scale: of the products.
            room: bytes of a tile of scores.
            group: the ranks.

        Returns:
            (B, H, N, d_v).
        """
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        block, total = [k, v], None
        for step in range(group.size()):
            following, works = _pass_on(block, counts, step, group)
            part, logsumexp = attend_tiled(q, *block, None, None, None, scale, 0.0, room)
            total = merge_with(total, (at_least_single(part), logsumexp))
            wait(works)
            block = following
        out = total[0].to(q.dtype)
        context.save_for_backward(q, k, v, out, total[1])
        context.constants = counts, scale, room, group
        return out

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v; those of a shard of keys travel with it until they are home."""
        refuse_second_derivative()
        q, k, v, out, logsumexp = context.saved_tensors
        counts, scale, room, group = context.constants
        block, grad_q, grad_block = [k, v], None, None
        for step in range(group.size()):
            following, works = _pass_on(block, counts, step, group)
            tile = tile_within(room, q.shape[0] * q.shape[1], q.shape[2], block[0].shape[2])
            part_q, *parts = tiles.backward(gradient, None, q, *block, out, logsumexp, scale, tile)
            grad_q = part_q if grad_q is None else grad_q.add_(part_q)
            if grad_block is not None:
                parts = [part.add_(before) for part, before in zip(parts, grad_block, strict=True)]
            following_grad, grad_works = _pass_on(parts, counts, step, group)
            wait(works + grad_works)
            block, grad_block = following, following_grad
        grad_k, grad_v = grad_block
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _pass_on(
    block: list[Tensor], counts: list[int], step: int, group: dist.ProcessGroup
) -> tuple[list[Tensor], list[dist.Work]]:
    """Begins to send what this rank has at a step to the next rank, and to receive what the one before it has."""
    ranks, here = group.size(), group.rank()
    if ranks == 1:
        return block, []
    count = counts[(here - step - 1) % ranks]
    following = [part.new_empty([*part.shape[:2], count, part.shape[3]]) for part in block]
    giving = [((here + 1) % ranks, part) for part in block]
    return following, post(giving, [((here - 1) % ranks, part) for part in following], group)


def merge_with(before: tuple[Tensor, Tensor] | None, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two parts of a softmax over disjoint keys, an output and its log-sum-exp each, as one; changes both.

    A query that neither has a key for, log-sum-exp -inf in both, keeps an output of 0.
    """
    if before is None:
        return part
    total = torch.logaddexp(before[1], part[1])
    base = total.masked_fill(total == -math.inf, 0.0)
    out = before[0].mul_(torch.exp(before[1] - base).unsqueeze(3))
    return out.addcmul_(part[0], torch.exp(part[1] - base).unsqueeze(3)), total
