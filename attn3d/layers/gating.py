"""x times gates that broadcast to it, such that backward keeps x and the gates and nothing of the size of x.

Written as a chain of products, autograd keeps a whole map more for every gate but the first, and another for the
sigmoid of a sum of two. Here they are computed anew in backward, from operators that can be differentiated once more.
"""

from typing import Any

import torch
from torch import Tensor

from attn3d.capture import takes_python_operators, without_autocast


class _WeightedSum(torch.autograd.Function):
    """x_1 * g_1 + .. + x_m * g_m."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        (x, *others), (gate, *other_gates) = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        y = x * gate
        for x, gate in zip(others, other_gates, strict=True):
            same = torch.promote_types(x.dtype, gate.dtype) == y.dtype
            y = y.addcmul_(x, gate) if same else y + x * gate
        return y

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        tensors = context.saved_tensors  # once, as checkpoints want it
        half = len(tensors) // 2
        grad_maps, grad_gates = [], []
        for x, gate in zip(tensors[:half], tensors[half:], strict=True):
            grad_product = grad_y * x
            grad_gates.append(_sum_like(grad_product, gate))
            grad_maps.append(_product_into(grad_product, grad_y, gate).to(x.dtype))
        return (*grad_maps, *grad_gates)


class _Gate(torch.autograd.Function):
    """x * a * b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y = x * a
        return _product_into(y, y, b)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a, b = context.saved_tensors
        grad_product = grad_y * x
        grad_a, grad_b = _sum_of_products(grad_product, b, a), _sum_of_products(grad_product, a, b)
        grad_x = _product_into(grad_product, grad_y, a)
        return _product_into(grad_x, grad_x, b).to(x.dtype), grad_a, grad_b


class _JointGate(torch.autograd.Function):
    """x * (offset + sigmoid(a + b)), or of a * b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
        return _joint(x, a, b, product, offset)

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, context.product, context.offset = inputs
        context.save_for_backward(*tensors)

    @staticmethod
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = context.saved_tensors
        weight = torch.sigmoid(a * b if context.product else a + b)
        grad_sum = torch.ops.aten.sigmoid_backward(grad_y * x, weight)
        if context.product:
            grad_a, grad_b = _sum_of_products(grad_sum, b, a), _sum_of_products(grad_sum, a, b)
        else:
            grad_a, grad_b = _sum_like(grad_sum, a), _sum_like(grad_sum, b)
        if context.offset != 0.0:
            weight = weight + context.offset
        return _product_into(grad_sum, grad_y, weight).to(x.dtype), grad_a, grad_b, None, None


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
        return weighted_sum([x], [a])
    if not torch.jit.is_scripting():
        if takes_python_operators(x):
            return _Gate.apply(x, a, b).to(x.dtype)
    return (x * a * b).to(x.dtype)


def weighted_sum(maps: list[Tensor], gates: list[Tensor]) -> Tensor:
    """The sum of maps times gates, keeping the maps and the gates alone for backward.

    Args:
        maps: one or more, of one shape.
        gates: as many, which broadcast to the maps and have as many axes.

    Returns:
        a tensor with the shape, dtype and memory format of the first map.
    """
    if not torch.jit.is_scripting():
        if takes_python_operators(maps[0]):
            return _WeightedSum.apply(*maps, *gates).to(maps[0].dtype)
    y = maps[0] * gates[0]
    for index in range(1, len(maps)):
        y = y + maps[index] * gates[index]
    return y.to(maps[0].dtype)


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
    if not torch.jit.is_scripting():
        if takes_python_operators(x):
            return _JointGate.apply(x, a, b, product, offset).to(x.dtype)
    return _joint(x, a, b, product, offset).to(x.dtype)


def _joint(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    weight = torch.sigmoid(a * b if product else a + b)
    return x * (weight + offset if offset != 0.0 else weight)


def _product_into(own: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """x * gate, in the memory of a tensor that nobody else needs, if nothing is differentiated."""
    if torch.is_grad_enabled() or torch.promote_types(x.dtype, gate.dtype) != own.dtype:
        return x * gate
    if own is not x:
        own.copy_(x)  # memory that is at hand: to fetch as much anew takes longer
    return own.mul_(gate)


def _sum_like(x: Tensor, like: Tensor) -> Tensor:
    """The sum over the axes along which ``like`` has size 1, in the shape and dtype of it, and memory of its own."""
    if x.shape == like.shape:
        return x.to(like.dtype, copy=True)
    return x.sum_to_size(like.shape).to(like.dtype)


@without_autocast
def _sum_of_products(x: Tensor, y: Tensor, like: Tensor) -> Tensor:
    """The sum of x * y over the axes along which ``like`` has size 1, without x * y, in the shape and dtype of it.

    As an Einstein sum it is a matrix product, in which ``y`` has no axes along which it only broadcasts.
    """
    axes = list(range(x.dim()))
    own, kept = ([axis for axis in axes if tensor.shape[axis] != 1] for tensor in (y, like))
    dtype = torch.promote_types(x.dtype, y.dtype)
    y = y.reshape([y.shape[axis] for axis in own])
    total = torch.einsum(x.to(dtype), axes, y.to(dtype), own, kept)
    return total.reshape(like.shape).to(like.dtype)
