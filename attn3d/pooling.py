"""The mean and the maximum of a map over some of its axes, such that backward keeps nothing more of its size.

PyTorch's maximum keeps the map that it is taken of, which a product with a gate makes anew, and its backward multiplies
by a mask of another dtype, in several passes through memory. Here backward computes the product again.
"""

import math

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
    def setup_context(context, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, gate, context.axes = inputs
        context.save_for_backward(x, gate, output[1])

    @staticmethod
    def backward(context, of_mean: Tensor, of_largest: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, largest = context.saved_tensors
        with torch.no_grad():
            at_largest = (x if gate is None else x * gate).eq(largest).to(largest.dtype)
        # Those that share the maximum share its gradient.
        share = of_largest / at_largest.sum(context.axes, keepdim=True)
        count = math.prod(x.shape[axis] for axis in context.axes)
        of_each = torch.addcmul(of_mean / count, at_largest, share)
        del at_largest  # before the next map is made
        if gate is None:
            return of_each.to(x.dtype), None, None
        of_gate = (of_each * x).sum_to_size(gate.shape).to(gate.dtype)
        return (of_each * gate).to(x.dtype), of_gate, None


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
