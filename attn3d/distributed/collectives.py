"""Differentiable communication between ranks.

PyTorch's own differentiable collectives change their names between releases. These use ``all_reduce``, ``all_gather``
and ``batch_isend_irecv``, which both gloo and nccl support. Every rank posts its messages in the same order, in forward
and backward, which avoids deadlocks.
"""

from collections.abc import Iterable
from itertools import accumulate
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


def fetch(tokens: Tensor, borders: list[int], wanted: list[Span], plane: int, group: dist.ProcessGroup) -> Tensor:
    """Fetches the tokens of the rows that this rank needs from the ranks that hold them.

    Args:
        tokens: tokens of the rows of this rank, (B, H, rows plane, d).
        borders: first row of every rank, and the end of the last.
        wanted: the rows that every rank needs.
        plane: number of tokens per row.
        group: the process group.

    Returns:
        (B, H, rows plane, d).
    """
    rows = tokens.unflatten(2, (tokens.shape[2] // plane, plane)).movedim(2, 0)
    return _Fetch.apply(rows, borders, wanted, group).movedim(0, 2).flatten(2, 3)


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
        ctx.plan = borders, wanted, group
        rank = group.rank()
        first, end = wanted[rank]
        x = x.contiguous()
        fetched = x.new_empty([end - first, *x.shape[1:]])
        sent = [x[_inside(borders, rank, span)] for span in wanted]
        received = [fetched[_inside(borders, other, wanted[rank], first)] for other in range(group.size())]
        received[rank].copy_(sent[rank])
        wait(post(enumerate(sent), enumerate(received), group))
        return fetched

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        borders, wanted, group = ctx.plan
        rank = group.rank()
        grad = grad.contiguous()
        sent = [grad[_inside(borders, other, wanted[rank], wanted[rank][0])] for other in range(group.size())]
        places = [_inside(borders, rank, span) for span in wanted]
        received = [grad.new_empty([place.stop - place.start, *grad.shape[1:]]) for place in places]
        received[rank] = sent[rank]
        wait(post(enumerate(sent), enumerate(received), group))
        grad_x = grad.new_zeros([borders[rank + 1] - borders[rank], *grad.shape[1:]])
        for place, part in zip(places, received, strict=True):  # in rank order, so that sums are deterministic
            grad_x[place] += part
        return grad_x, None, None, None


def _inside(borders: list[int], rank: int, span: Span, origin: int | None = None) -> slice:
    """Returns the rows of ``span`` that ``rank`` holds, relative to ``origin``, by default the rank's first row."""
    begin = max(borders[rank], span[0])
    end = max(begin, min(borders[rank + 1], span[1]))
    origin = borders[rank] if origin is None else origin
    return slice(begin - origin, end - origin) if end > begin else slice(0, 0)


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
