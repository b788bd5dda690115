"""Elementwise functions of a feature map, computed block by block so that temporaries stay in the cache.

In eager mode, each operator of a chain reads and writes a whole map, and on a CPU memory traffic dominates the time.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attn3d.capture import at_least_single, is_batched, is_captured, is_forward_mode

_BLOCK = 2**17  # elements: 512 KiB in single precision, which fits the L2 cache
_MOST_BLOCKS = 256


@torch.jit.unused
def runs_eagerly(x: Tensor) -> bool:
    """Returns whether a `torch.autograd.Function` may replace plain operators on ``x``.

    It may not in a capture, since compilers fuse plain operators themselves, nor for a subclass such as MetaTensor, for
    which a function returns a view that cannot be changed in place, nor in forward-mode differentiation, for which our
    functions have no rule.

    TorchScript does not compile what follows ``if not torch.jit.is_scripting() and runs_eagerly(x):``.
    """
    # Only the type is checked: an active function mode does not make a tensor a subclass.
    plain = type(x) is Tensor or type(x).__torch_function__ is torch._C._disabled_torch_function_impl
    return plain and not is_captured() and not is_forward_mode()


def blocks(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yields views of a map and of tensors that broadcast to it, block by block, in memory order of the map.

    Args:
        tensors: the map, then tensors with the same number of axes; each size is that of the map or 1.
    """
    x = tensors[0]
    most = x.numel()
    if x.device.type == "cpu":
        most = max(_BLOCK, x.numel() // _MOST_BLOCKS)
    return _blocks(tensors, most)


def _blocks(tensors: Sequence[Tensor], most: int) -> Iterator[Sequence[Tensor]]:
    x = tensors[0]
    if x.numel() <= most:
        yield tensors
        return
    axis = max((axis for axis in range(x.dim()) if x.shape[axis] > 1), key=x.stride)
    step = max(1, x.shape[axis] * most // x.numel())
    for start in range(0, x.shape[axis], step):
        size = min(step, x.shape[axis] - start)
        parts = [part if part.shape[axis] == 1 else part.narrow(axis, start, size) for part in tensors]
        yield from _blocks(parts, most)


class _Elementwise(torch.autograd.Function):
    """An elementwise function that saves only its inputs for backward."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return blockwise(function, inputs, inputs[:1])[0]

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        context.function = inputs[0]
        context.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs = context.saved_tensors  # checkpoints allow only one unpacking
        return None, *blockwise(partial(gradients, context.function), [grad_y, *inputs], inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Any, *inputs: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(function, in_dims[1:])(*inputs), 0


def gradients(function: Callable[..., Tensor], grad_y: Tensor, *inputs: Tensor) -> Sequence[Tensor]:
    """Returns the gradients of the inputs of ``function``, by autograd."""
    if torch.is_grad_enabled() or is_batched(grad_y):
        return torch.func.vjp(function, *inputs)[1](grad_y)
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_y)


def elementwise(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """Computes ``function(x, *others)`` block by block, and again in backward, which saves only the inputs.

    Args:
        function: an elementwise function of plain operators. Its result must have the shape and dtype of ``x``.
        x: a map of any shape.
        others: tensors with the same number of axes; each size is that of ``x`` or 1.
    """
    return _Elementwise.apply(function, x, *others)


def blockwise(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], like: Sequence[Tensor]
) -> list[Tensor]:
    """Computes the results of an elementwise function block by block.

    Args:
        function: takes ``inputs``, or a block of them, and returns one tensor for each entry of ``like``; a single
            tensor may be returned without a list.
        inputs: the map, then tensors that broadcast to it.
        like: for each result a tensor with its shape, dtype and memory format. A result that is smaller than the map
            is summed over the axes along which it has size 1.
    """

    def computed(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        results = function(*inputs)
        return [results] if isinstance(results, Tensor) else results

    if torch.is_grad_enabled() or any(map(is_batched, inputs)):  # nothing may be computed in place
        pairs = zip(computed(inputs), like, strict=True)
        return [result.sum_to_size(other.shape).to(other.dtype) for result, other in pairs]
    shape = inputs[0].shape
    is_map = [other.shape == shape for other in like]
    results = [
        torch.empty_like(other) if whole else torch.zeros_like(at_least_single(other))
        for other, whole in zip(like, is_map, strict=True)
    ]
    # Axes in memory order: products of tensors that only broadcast would otherwise have another layout than the map.
    order = sorted(range(len(shape)), key=inputs[0].stride, reverse=True)
    for parts in blocks([tensor.permute(order) for tensor in (*inputs, *results)]):
        input_parts, result_parts = parts[: len(inputs)], parts[len(inputs) :]
        for result, part, whole in zip(result_parts, computed(input_parts), is_map, strict=True):
            if whole:
                result.copy_(part)
            else:
                result.add_(part.sum_to_size(result.shape))
    return [result.to(other.dtype) for result, other in zip(results, like, strict=True)]
