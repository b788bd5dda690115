"""The mean and the maximum of a map over some of its axes, without saving another map for backward.

The gradient of PyTorch's mean is a whole map; that of a sum is an expanded view. PyTorch's maximum saves its input,
which is a new map if it is a product with a gate. Here backward recomputes the product block by block.
"""

from typing import Any

import torch
from torch import Tensor

from attn3d.capture import at_least_single
from attn3d.layers.blockwise import blocks, blockwise, runs_eagerly


class _MeanAndMaximum(torch.autograd.Function):
    """The mean and the maximum over some axes of x, or of x times a gate."""

    @staticmethod
    def forward(axes: list[int], x: Tensor, *gate: Tensor) -> tuple[Tensor, Tensor]:
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        dtype = torch.promote_types(x.dtype, gate[0].dtype) if gate else x.dtype
        total = at_least_single(x.new_zeros(shape, dtype=dtype))
        largest = x.new_full(shape, -torch.inf, dtype=dtype)
        for x_block, total_block, largest_block, *gate_block in blocks([x, total, largest, *gate]):
            product = _times(x_block, *gate_block)
            total_block.add_(product.sum(axes, keepdim=True, dtype=total.dtype))
            torch.maximum(largest_block, product.amax(axes, keepdim=True), out=largest_block)
        return (total / count(x, axes)).to(dtype), largest

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        context.axes, *maps = inputs
        context.save_for_backward(output[1], *maps)

    @staticmethod
    def backward(context: Any, grad_mean: Tensor, grad_largest: Tensor) -> tuple[Tensor | None, ...]:
        largest, x, *gate = context.saved_tensors

        def gradients(x: Tensor, largest: Tensor, share: Tensor, each: Tensor, *gate: Tensor) -> list[Tensor]:
            grad_product = _is_largest(x, largest, *gate) * share + each
            return [grad_product * gate[0], grad_product * x] if gate else [grad_product]

        # Elements that are equal to the maximum share its gradient equally.
        (sharing,) = blockwise(_is_largest, [x, largest, *gate], [largest])
        share, each = grad_largest / sharing, grad_mean / count(x, context.axes)
        return None, *blockwise(gradients, [x, largest, share, each, *gate], [x, *gate])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, axes: list[int], *maps: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        def plain(*maps: Tensor) -> tuple[Tensor, Tensor]:
            return _mean_and_maximum(_times(*maps), axes)

        return torch.vmap(plain, in_dims[1:])(*maps), (0, 0)


def mean(x: Tensor, axes: list[int]) -> Tensor:
    """Computes the mean over ``axes`` and removes them; the result has the dtype of ``x``.

    Args:
        x: (B, C, *S).
        axes: one or more axes.
    """
    total = x.sum(axes, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / count(x, axes)).to(x.dtype)


def mean_and_maximum(x: Tensor, axes: list[int], gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Computes the mean and the maximum of x, or of x * gate, over ``axes``.

    Only x, the gate and the maximum are saved for backward.

    Args:
        x: (B, C, *S).
        axes: one or more axes.
        gate: a gate that broadcasts to ``x`` and has the same number of axes.

    Returns:
        two tensors, with a size of 1 along ``axes``.
    """
    if not torch.jit.is_scripting() and runs_eagerly(x):
        return _MeanAndMaximum.apply(axes, x, *([] if gate is None else [gate]))
    return _mean_and_maximum(x if gate is None else x * gate, axes)


def _mean_and_maximum(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    return x.mean(axes, keepdim=True), x.amax(axes, keepdim=True)


def _times(x: Tensor, *gate: Tensor) -> Tensor:
    return x * gate[0] if gate else x


@torch.no_grad()
def _is_largest(x: Tensor, largest: Tensor, *gate: Tensor) -> Tensor:
    """Returns 1 where x, or x * gate, equals ``largest``, and 0 elsewhere.

    The comparison is in place, because a boolean mask would need several passes to compute and to multiply with.
    """
    return (x * gate[0] if gate else x.clone()).eq_(largest)


def count(x: Tensor, axes: list[int]) -> int:
    """Returns the number of elements of ``x`` along ``axes``, the product of their sizes."""
    elements = 1
    for axis in axes:
        elements = elements * x.shape[axis]
    return elements
