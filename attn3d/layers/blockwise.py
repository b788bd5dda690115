"""A map computed a block at a time, so that what lies between its reading and its writing stays in the cache.

An eager chain of operators writes and reads a map of its own for each of them: on a CPU the time is that of memory.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attn3d.capture import at_least_single, takes_python_operators

_BLOCK = 2**17  # elements; 512 KiB in single precision, a part of the second-level cache
_MOST_BLOCKS = 256


def runs_eagerly(x: Tensor) -> bool:
    """Whether a `torch.autograd.Function` may stand in for plain operators on ``x``; never in TorchScript."""
    if not torch.jit.is_scripting():
        return takes_python_operators(x)
    return False


def blocks(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Views of a map and of what broadcasts to it, block by block, in the order of the map in memory.

    Args:
        tensors: the map, then others with as many axes, each of the size of the map or 1.
    """
    x = tensors[0]
    return _blocks(tensors, max(_BLOCK, x.numel() // _MOST_BLOCKS) if x.device.type == "cpu" else x.numel())


def _blocks(tensors: Sequence[Tensor], most: int) -> Iterator[Sequence[Tensor]]:
    x = tensors[0]
    if x.numel() <= most:
        yield tensors
        return
    axis = max((axis for axis in range(x.dim()) if x.shape[axis] > 1), key=x.stride)
    step = max(1, x.shape[axis] * most // x.numel())
    for start in range(0, x.shape[axis], step):
        size = min(step, x.shape[axis] - start)
        yield from _blocks([one if one.shape[axis] == 1 else one.narrow(axis, start, size) for one in tensors], most)


class _Elementwise(torch.autograd.Function):
    """A function of a map and of what broadcasts to it, such that backward keeps nothing but its inputs."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return blockwise(lambda *parts: [function(*parts)], inputs, inputs[:1])[0]

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        context.function = inputs[0]
        context.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        function, inputs = context.function, context.saved_tensors  # once, as checkpoints want it

        def gradients(grad_y: Tensor, *inputs: Tensor) -> Sequence[Tensor]:
            if torch.is_grad_enabled():
                return torch.func.vjp(function, *inputs)[1](grad_y)
            with torch.enable_grad():
                own = [part.detach().requires_grad_() for part in inputs]
                return torch.autograd.grad(function(*own), own, grad_y)

        return None, *blockwise(gradients, [grad_y, *inputs], inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Any, *inputs: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(function, in_dims[1:])(*inputs), 0


def elementwise(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """``function(x, *others)`` block by block, and again in backward, for which only the inputs are kept.

    Args:
        function: elementwise, of plain operators; its result has the shape and dtype of ``x``.
        x: a map of any shape.
        others: with as many axes, each of the size of the map or 1.
    """
    return _Elementwise.apply(function, x, *others)


def blockwise(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], like: Sequence[Tensor]
) -> list[Tensor]:
    """The results of an elementwise function of a map and of what broadcasts to it.

    Args:
        function: of ``inputs``, or of a block of them, to as many maps as there are ``like``.
        inputs: the map first.
        like: for each result a tensor with its shape, dtype and memory format. A result of fewer elements than the
            map is the sum over the axes along which it has size 1.
    """
    if torch.is_grad_enabled():  # these operators are themselves differentiated: none may write over another's result
        return [sum_like(one, other) for one, other in zip(function(*inputs), like, strict=True)]
    shape = inputs[0].shape
    whole = [one.shape == shape for one in like]
    results = [
        torch.empty_like(one) if is_whole else torch.zeros_like(at_least_single(one))
        for one, is_whole in zip(like, whole, strict=True)
    ]
    # Axes in the order of memory: a product of what merely broadcasts would else be laid out across the map.
    order = sorted(range(len(shape)), key=inputs[0].stride, reverse=True)
    for parts in blocks([one.permute(order) for one in (*inputs, *results)]):
        own = parts[len(inputs) :]
        for result, one, is_whole in zip(own, function(*parts[: len(inputs)]), whole, strict=True):
            result.copy_(one) if is_whole else result.add_(one.sum_to_size(result.shape))
    return [one.to(other.dtype) for one, other in zip(results, like, strict=True)]


def sum_like(x: Tensor, like: Tensor) -> Tensor:
    """The sum over the axes along which ``like`` has size 1, in its shape and dtype."""
    return x.sum_to_size(like.shape).to(like.dtype)
