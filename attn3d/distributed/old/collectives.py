"""What ranks say to each other, differentiably.

PyTorch's own differentiable collectives change their names from release to release; these stand on
``all_reduce`` and ``batch_isend_irecv``, which gloo and nccl both have. Each posts its messages in the same order
on every rank, forward and backward, so that none waits for another.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

Span = tuple[int, int]  # rows of the volume, from the first to behind the last


class Sum(torch.autograd.Function):
    """The sum over the ranks, the same on all of them; so is the gradient, as all outputs depend on every input."""

    @staticmethod
    def forward(context, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Sums ``x``, which has the same shape on every rank."""
        context.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        """Sums the gradients."""
        return Sum.apply(gradient, context.group), None


class Fetch(torch.autograd.Function):
    """Rows of the volume from the ranks that hold them; their gradients go back and are added up there."""

    @staticmethod
    def forward(context, x: Tensor, cuts: list[int], wanted: list[Span], group: dist.ProcessGroup) -> Tensor:
        """Fetches.

        Args:
            context: of autograd.
            x: the rows of this rank, (rows, ...).
            cuts: where the shard of every rank begins, and where the last ends.
            wanted: the rows that every rank is to have.
            group: the ranks.

        Returns:
            the rows ``wanted`` of this rank, (rows, ...).
        """
        context.plan = cuts, wanted, group
        rank = group.rank()
        first, end = wanted[rank]
        x = x.contiguous()
        fetched = x.new_empty([end - first, *x.shape[1:]])
        giving = [x[_inside(cuts, rank, span)] for span in wanted]
        taking = [fetched[_inside(cuts, other, wanted[rank], first)] for other in range(group.size())]
        taking[rank].copy_(giving[rank])
        wait(post(enumerate(giving), enumerate(taking), group))
        return fetched

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Adds up, in the order of the ranks, what each has of this rank's rows."""
        refuse_second_derivative()
        cuts, wanted, group = context.plan
        rank = group.rank()
        gradient = gradient.contiguous()
        giving = [gradient[_inside(cuts, other, wanted[rank], wanted[rank][0])] for other in range(group.size())]
        places = [_inside(cuts, rank, span) for span in wanted]
        taking = [gradient.new_empty([place.stop - place.start, *gradient.shape[1:]]) for place in places]
        taking[rank] = giving[rank]
        wait(post(enumerate(giving), enumerate(taking), group))
        home = gradient.new_zeros([cuts[rank + 1] - cuts[rank], *gradient.shape[1:]])
        for place, part in zip(places, taking, strict=True):
            home[place] += part
        return home, None, None, None


def _inside(cuts: list[int], rank: int, span: Span, origin: int | None = None) -> slice:
    """The rows of ``span`` that ``rank`` holds, counted from ``origin``, by default the first that it holds."""
    begin = max(cuts[rank], span[0])
    end = max(begin, min(cuts[rank + 1], span[1]))
    origin = cuts[rank] if origin is None else origin
    return slice(begin - origin, end - origin) if end > begin else slice(0, 0)


def refuse_second_derivative() -> None:
    """Refuses a backward pass that is to be differentiated.

    PyTorch's `once_differentiable` refuses later, and not where the second derivative has another way round.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("attention over ranks has no second derivative: call backward without `create_graph`")


def post(
    giving: Iterable[tuple[int, Tensor]], taking: Iterable[tuple[int, Tensor]], group: dist.ProcessGroup
) -> list[dist.Work]:
    """Begins to send to other ranks and to receive from them: a rank and a contiguous tensor each."""
    messages = [
        dist.P2POp(operation, tensor, dist.get_global_rank(group, rank), group)
        for operation, tensors in ((dist.isend, giving), (dist.irecv, taking))
        for rank, tensor in tensors
        if rank != group.rank() and tensor.numel() > 0
    ]
    return dist.batch_isend_irecv(messages) if messages else []


def wait(works: list[dist.Work]) -> None:
    """Until all that was posted has gone and come."""
    for work in works:
        work.wait()
