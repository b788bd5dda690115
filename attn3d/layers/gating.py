"""x times gates that broadcast to it, such that backward keeps x and the gates and nothing of the size of x.

Written as a chain of products, autograd keeps a whole map more for every gate but the first, and another for the
sigmoid of a sum of two. Here backward computes them again, block by block.
"""

from typing import Any

import torch
from torch import Tensor

from attn3d.layers.blockwise import blockwise, runs_eagerly


class _Gate(torch.autograd.Function):
    """x * a * b."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return blockwise(lambda x, a, b: [x * a * b], [x, a, b], [x])[0]

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, a, b = context.saved_tensors  # once, as checkpoints want it

        def gradients(grad_y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
            product = grad_y * x
            return [grad_y * a * b, product * b, product * a]

        return tuple(blockwise(gradients, [grad_y, x, a, b], [x, a, b]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(_product, in_dims)(*tensors), 0


class _JointGate(torch.autograd.Function):
    """x * (offset + sigmoid(a + b)), or of a * b."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
        return blockwise(lambda x, a, b: [_joint(x, a, b, product, offset)], [x, a, b], [x])[0]

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, context.product, context.offset = inputs
        context.save_for_backward(*tensors)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = context.saved_tensors

        def gradients(grad_y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
            weight = torch.sigmoid(a * b if context.product else a + b)
            grad_sum = torch.ops.aten.sigmoid_backward(grad_y * x, weight)
            grads = [grad_sum * b, grad_sum * a] if context.product else [grad_sum, grad_sum]
            return [grad_y * (weight + context.offset), *grads]

        return *blockwise(gradients, [grad_y, x, a, b], [x, a, b]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return torch.vmap(_joint, in_dims)(*inputs), 0


def gate(x: Tensor, a: Tensor, b: Tensor | None = None) -> Tensor:
    """x * a, or x * a * b, keeping x and the gates alone for backward.

    Args:
        x: any shape.
        a: broadcasts to ``x``, and has as many axes.
        b: the same.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if b is None:
        return (x * a).to(x.dtype)
    if runs_eagerly(x):
        return _gate_blockwise(x, a, b)
    return _product(x, a, b)


def joint_gate(x: Tensor, a: Tensor, b: Tensor, product: bool = False, offset: float = 0.0) -> Tensor:
    """x * (offset + sigmoid(a + b)), keeping x, a and b alone for backward.

    Args:
        x: any shape.
        a: broadcasts to ``x``, and has as many axes.
        b: the same.
        product: whether the sigmoid is of a * b.
        offset: added to the sigmoid.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if runs_eagerly(x):
        return _joint_gate_blockwise(x, a, b, product, offset)
    return _joint(x, a, b, product, offset)


def weighted_sum(maps: list[Tensor], gates: list[Tensor]) -> Tensor:
    """The sum of maps times gates; autograd keeps these alone, as the gradient of a sum needs none of its terms.

    Args:
        maps: one or more, of one shape.
        gates: as many, which broadcast to the maps and have as many axes.

    Returns:
        a tensor with the shape, dtype and memory format of the first map.
    """
    y = maps[0] * gates[0]
    for index in range(1, len(maps)):
        y = y + maps[index] * gates[index]
    return y.to(maps[0].dtype)


@torch.jit.unused
def _gate_blockwise(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _Gate.apply(x, a, b)


@torch.jit.unused
def _joint_gate_blockwise(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    return _JointGate.apply(x, a, b, product, offset)


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (x * a * b).to(x.dtype)


def _joint(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    weight = torch.sigmoid(a * b if product else a + b)
    return (x * (weight + offset if offset != 0.0 else weight)).to(x.dtype)
