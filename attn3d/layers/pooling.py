"""The mean and the maximum of a map over some of its axes, such that backward keeps nothing more of its size.

The gradient of a sum is a view of what comes from above, that of PyTorch's mean a map. PyTorch's maximum keeps the map
that it is taken of, which a product with a gate makes anew, and its backward multiplies by a mask of another dtype, in
several passes through memory. Here backward computes the product again.
"""

import math
from typing import Any

import torch
from torch import Tensor

from attn3d.capture import takes_python_operators


class _MeanAndMaximum(torch.autograd.Function):
    """Over some axes, of x or of x times a gate."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gate: Tensor | None, axes: list[int]) -> tuple[Tensor, Tensor]:
        return _mean_and_maximum(x, axes, gate)

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, gate, context.axes = inputs
        context.save_for_backward(x, gate, output[1])

    @staticmethod
    def backward(context: Any, grad_mean: Tensor, grad_largest: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, largest = context.saved_tensors
        with torch.no_grad():
            at_largest = (x.clone() if gate is None else x * gate).eq_(largest)
        # Those that share the maximum share its gradient.
        share = grad_largest / at_largest.sum(context.axes, keepdim=True)
        grad_mean = grad_mean / math.prod(x.shape[axis] for axis in context.axes)
        # If nothing is differentiated, in memory that is at hand: to fetch as much anew takes longer.
        anew = torch.is_grad_enabled()
        grad_each = at_largest * share + grad_mean if anew else at_largest.mul_(share).add_(grad_mean)
        if gate is None:
            return grad_each.to(x.dtype), None, None
        grad_gate = (grad_each * x).sum_to_size(gate.shape).to(gate.dtype)
        grad_x = grad_each * gate if anew else grad_each.mul_(gate)
        return grad_x.to(x.dtype), grad_gate, None


def mean(x: Tensor, axes: list[int]) -> Tensor:
    """The mean over ``axes``, which it drops, in the dtype of ``x``.

    Args:
        x: (B, C, *S).
        axes: one or more.
    """
    if not torch.jit.is_scripting():
        if takes_python_operators(x):
            total = x.sum(axes, dtype=torch.promote_types(x.dtype, torch.float32))
            return (total / math.prod(x.shape[axis] for axis in axes)).to(x.dtype)
    return x.mean(axes)


def mean_and_maximum(x: Tensor, axes: list[int], gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the maximum over ``axes`` of x, or of x * gate, keeping x, the gate and the maximum for backward.

    Args:
        x: (B, C, *S).
        axes: one or more.
        gate: broadcasts to ``x``, and has as many axes.

    Returns:
        two tensors, with a size of 1 along ``axes``.
    """
    if not torch.jit.is_scripting():
        if takes_python_operators(x):
            return _MeanAndMaximum.apply(x, gate, axes)
    return _mean_and_maximum(x, axes, gate)


def _mean_and_maximum(x: Tensor, axes: list[int], gate: Tensor | None) -> tuple[Tensor, Tensor]:
    if gate is not None:
        x = x * gate
    return x.mean(axes, keepdim=True), x.amax(axes, keepdim=True)
