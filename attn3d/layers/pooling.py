"""The mean and the maximum of a map over some of its axes, such that backward keeps nothing more of its size.

The gradient of a sum is a view of what comes from above, that of PyTorch's mean a map. PyTorch's maximum keeps the map
that it is taken of, which a product with a gate makes anew. Here backward computes the product again, block by block.
"""

from typing import Any

import torch
from torch import Tensor

from attn3d.capture import at_least_single
from attn3d.layers.blockwise import blocks, blockwise, runs_eagerly


class _MeanAndMaximum(torch.autograd.Function):
    """Over some axes, of x times a gate."""

    @staticmethod
    def forward(x: Tensor, gate: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        dtype = torch.promote_types(x.dtype, gate.dtype)
        total = at_least_single(x.new_zeros(shape, dtype=dtype))
        largest = x.new_full(shape, -torch.inf, dtype=dtype)
        for x_block, gate_block, of_total, of_largest in blocks([x, gate, total, largest]):
            product = x_block * gate_block
            of_total.add_(product.sum(axes, keepdim=True, dtype=total.dtype))
            torch.maximum(of_largest, product.amax(axes, keepdim=True), out=of_largest)
        return (total / _count(x, axes)).to(dtype), largest

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, gate, context.axes = inputs
        context.save_for_backward(x, gate, output[1])

    @staticmethod
    def backward(context: Any, grad_mean: Tensor, grad_largest: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, largest = context.saved_tensors
        (sharing,) = blockwise(lambda *parts: [_is_largest(*parts)], [x, gate, largest], [largest])

        def gradients(x: Tensor, gate: Tensor, largest: Tensor, share: Tensor, each: Tensor) -> list[Tensor]:
            grad_product = _is_largest(x, gate, largest) * share + each
            return [grad_product * gate, grad_product * x]

        # Those that share the maximum share its gradient.
        inputs = [x, gate, largest, grad_largest / sharing, grad_mean / _count(x, context.axes)]
        return *blockwise(gradients, inputs, [x, gate]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return torch.vmap(_mean_and_maximum, in_dims)(*inputs), (0, 0)


def mean(x: Tensor, axes: list[int]) -> Tensor:
    """The mean over ``axes``, which it drops, in the dtype of ``x``.

    Args:
        x: (B, C, *S).
        axes: one or more.
    """
    total = x.sum(axes, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / _count(x, axes)).to(x.dtype)


def mean_and_maximum(x: Tensor, axes: list[int], gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the maximum over ``axes`` of x, or of x * gate, keeping x, the gate and the maximum for backward.

    Args:
        x: (B, C, *S).
        axes: one or more.
        gate: broadcasts to ``x``, and has as many axes.

    Returns:
        two tensors, with a size of 1 along ``axes``.
    """
    if gate is None:
        gate = torch.ones([1] * x.dim(), dtype=x.dtype, device=x.device)
    if runs_eagerly(x):
        return _mean_and_maximum_blockwise(x, gate, axes)
    return _mean_and_maximum(x, gate, axes)


@torch.jit.unused
def _mean_and_maximum_blockwise(x: Tensor, gate: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    return _MeanAndMaximum.apply(x, gate, axes)


def _mean_and_maximum(x: Tensor, gate: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    x = x * gate
    return x.mean(axes, keepdim=True), x.amax(axes, keepdim=True)


@torch.no_grad()
def _is_largest(x: Tensor, gate: Tensor, largest: Tensor) -> Tensor:
    """1 where x * gate is ``largest``, else 0; a mask of the same dtype is what products with it are fast for."""
    return (x * gate).eq_(largest)


def _count(x: Tensor, axes: list[int]) -> int:
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    return count
