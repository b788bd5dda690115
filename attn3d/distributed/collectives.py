"""Differentiable communication between ranks.

PyTorch's own differentiable collectives change their names between releases. These use ``all_reduce``, ``all_gather``
and ``batch_isend_irecv``, which both gloo and nccl support. Every rank posts its messages in the same order, in forward
and backward, which avoids deadlocks.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attn3d.capture import needs_plain_operators

Span = tuple[int, int]  # a range of rows of the volume, end exclusive


@torch.compiler.disable
def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns the sum over the ranks of ``x``, which must have the same shape on every rank."""
    _refuse_capture()
    return _AllReduce.apply(x, group)


def sum_of(number: int, like: Tensor, group: dist.ProcessGroup) -> int:
    """Returns the sum of a number over the ranks; messages use the device of ``like``."""
    return int(all_reduce(torch.tensor(number, device=like.device), group))


@torch.compiler.disable
def shard_borders(q: Tensor, shape: list[int], group: dist.ProcessGroup) -> list[int]:
    """Returns the first row of the shard of every rank, and the end of the last shard.

    Args:
        q: queries of this rank, (B, H, N, d).
        shape: S of its shard.
        group: the process group.

    Raises:
        ValueError: on every rank, if shards differ in more than their first spatial axis.
    """
    _refuse_capture()
    batch, heads, _, width = q.shape
    mine = torch.tensor([shape[0], heads * width, batch, *shape[1:]], device=q.device)
    gathered = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(gathered, mine, group=group)
    sizes = torch.stack(gathered).tolist()
    if any(others[1:] != sizes[0][1:] for others in sizes):
        shards = [(batch, rows, *others) for rows, _, batch, *others in sizes]
        raise ValueError(f"`x` must differ between ranks only in its first spatial axis, got (B, *S) {shards}")
    return list(accumulate((rows for rows, *_ in sizes), initial=0))


def fetch(
    k: Tensor, v: Tensor, borders: list[int], wanted: list[Span], plane: int, group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """Fetches the keys and values of the rows that this rank needs from the ranks that hold them.

    Args:
        k: keys of the rows of this rank, (B, H, rows plane, d).
        v: their values, (B, H, rows plane, d_v).
        borders: first row of every rank, and the end of the last.
        wanted: the rows that every rank needs.
        plane: number of tokens per row.
        group: the process group.

    Returns:
        the keys (B, H, rows plane, d) and the values (B, H, rows plane, d_v).
    """
    tokens = torch.cat([k, v], 3)
    rows = tokens.unflatten(2, (tokens.shape[2] // plane, plane)).movedim(2, 0)
    fetched = _Fetch.apply(rows, borders, wanted, group).movedim(0, 2).flatten(2, 3)
    return fetched.split([k.shape[3], v.shape[3]], 3)


class _AllReduce(torch.autograd.Function):
    """A sum over ranks. Every rank uses the sum, so the gradient of a summand is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group), None


class _Fetch(torch.autograd.Function):
    """`fetch` on rows, (rows, ...). Backward returns the gradients to the ranks that hold the rows and sums them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, borders: list[int], wanted: list[Span], group: dist.ProcessGroup) -> Tensor:
        rank = group.rank()
        own, needed = (borders[rank], borders[rank + 1]), wanted[rank]
        slices = [_overlap(own, span) for span in wanted]  # what every rank needs of the rows of this one
        parts = [_overlap(needed, span) for span in pairwise(borders)]  # what every rank has of the needed rows
        ctx.plan = slices, parts, group
        ctx.rows = len(x)
        x = x.contiguous()
        fetched = x.new_empty([needed[1] - needed[0], *x.shape[1:]])
        fetched[parts[rank]] = x[slices[rank]]
        wait(post(enumerate(x[rows] for rows in slices), enumerate(fetched[rows] for rows in parts), group))
        return fetched

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        slices, parts, group = ctx.plan
        rank = group.rank()
        grad = grad.contiguous()
        received = [grad.new_empty([rows.stop - rows.start, *grad.shape[1:]]) for rows in slices]
        received[rank] = grad[parts[rank]]
        wait(post(enumerate(grad[rows] for rows in parts), enumerate(received), group))
        grad_x = grad.new_zeros([ctx.rows, *grad.shape[1:]])
        for rows, part in zip(slices, received, strict=True):  # in rank order, so that sums are deterministic
            grad_x[rows] += part
        return grad_x, None, None, None


def _overlap(rows: Span, span: Span) -> slice:
    """Returns which of ``rows`` are in ``span``, counted from the first of ``rows``."""
    begin = max(rows[0], span[0])
    end = max(begin, min(rows[1], span[1]))
    return slice(begin - rows[0], end - rows[0])


def _refuse_capture() -> None:
    if needs_plain_operators() or torch.compiler.is_exporting():
        raise ValueError(
            "a context-parallel module cannot be traced or exported: use a copy, which works on whole volumes"
        )


def refuse_second_derivative() -> None:
    """Raises an error in a backward pass with ``create_graph``.

    PyTorch's `once_differentiable` raises later, and not if the second derivative also has another path.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("context-parallel attention has no second derivative: call backward without `create_graph`")


def post(
    sent: Iterable[tuple[int, Tensor]], received: Iterable[tuple[int, Tensor]], group: dist.ProcessGroup
) -> list[dist.Work]:
    """Starts to send and receive contiguous tensors, given with the ranks of the other end."""
    messages = [
        dist.P2POp(operation, tensor, dist.get_global_rank(group, rank), group)
        for operation, tensors in ((dist.isend, sent), (dist.irecv, received))
        for rank, tensor in tensors
        if rank != group.rank() and tensor.numel() > 0
    ]
    return dist.batch_isend_irecv(messages) if messages else []


def wait(works: list[dist.Work]) -> None:
    """Waits until all messages have been sent and received."""
    for work in works:
        work.wait()
