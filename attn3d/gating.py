"""x times gates: y = x * g_1 * .. * g_m, each gate broadcast to x.

For backward only x and the gates are kept. Written as a chain of products, autograd would keep x * g_1, a
whole map more for every gate but the first.
"""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from attn3d.capture import needs_plain_operators


class _Gate(torch.autograd.Function):
    """Recomputes the partial products in backward, from differentiable operators, so that it has a second."""

    @staticmethod
    def forward(context, *tensors: Tensor) -> Tensor:
        context.save_for_backward(*tensors)
        return _product(tensors[0], list(tensors[1:]))

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *gates = context.saved_tensors
        gradients: list[Tensor | None] = [None] * (len(gates) + 1)
        if context.needs_input_grad[0]:
            gradients[0] = _product(gradient, gates).to(x.dtype)
        for index, gate in enumerate(gates):
            if context.needs_input_grad[index + 1]:
                others = gates[:index] + gates[index + 1 :]
                gradients[index + 1] = _product(gradient * x, others).sum_to_size(gate.shape).to(gate.dtype)
        return tuple(gradients)


def _product(x: Tensor, gates: list[Tensor]) -> Tensor:
    for gate in gates:
        x = x * gate
    return x


def gate(x: Tensor, gates: list[Tensor]) -> Tensor:
    """x * g_1 * .. * g_m, keeping x and the gates alone for backward.

    Args:
        x: any shape.
        gates: tensors that broadcast to ``x``.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if not torch.jit.is_scripting():
        # What a function gives for a subclass such as MetaTensor is a view, on which nothing may work in place.
        if len(gates) > 1 and not needs_plain_operators() and not has_torch_function_unary(x):
            return _Gate.apply(x, *gates).to(x.dtype)
    return _product(x, gates).to(x.dtype)
