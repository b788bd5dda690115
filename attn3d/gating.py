"""x times gates that broadcast to it, such that backward keeps x and the gates and nothing of the size of x.

Written as a chain of products, autograd keeps a whole map more for every gate but the first, and another for the
sigmoid of a sum of two. Here they are computed anew in backward, from operators that can be differentiated once more.
"""

import torch
from torch import Tensor

from attn3d.capture import takes_python_operators
from attn3d.precision import without_autocast


class _Gate(torch.autograd.Function):
    """x * a * b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _product(x, a, b)

    @staticmethod
    def setup_context(context, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a, b = context.saved_tensors
        of_x = _product(gradient, a, b).to(x.dtype)
        of_product = gradient * x
        return of_x, _sum_of_products(of_product, b, a), _sum_of_products(of_product, a, b)


class _JointGate(torch.autograd.Function):
    """x * (offset + sigmoid(a + b)), or of a * b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
        return _joint(x, a, b, product, offset)

    @staticmethod
    def setup_context(context, inputs: tuple, output: Tensor) -> None:
        *tensors, context.product, context.offset = inputs
        context.save_for_backward(*tensors)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = context.saved_tensors
        weight = torch.sigmoid(a * b if context.product else a + b)
        of_x = (gradient * (weight + context.offset if context.offset else weight)).to(x.dtype)
        of_sum = torch.ops.aten.sigmoid_backward(gradient * x, weight)
        if context.product:
            return of_x, _sum_of_products(of_sum, b, a), _sum_of_products(of_sum, a, b), None, None
        return of_x, of_sum.sum_to_size(a.shape).to(a.dtype), of_sum.sum_to_size(b.shape).to(b.dtype), None, None


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
    if not torch.jit.is_scripting():
        if takes_python_operators(x):
            return _Gate.apply(x, a, b).to(x.dtype)
    return (x * a * b).to(x.dtype)


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


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x * a
    # It is a tensor of our own, which may be overwritten if nothing is differentiated.
    own = not torch.is_grad_enabled() and torch.promote_types(y.dtype, b.dtype) == y.dtype
    return y.mul_(b) if own else y * b


def _joint(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    weight = torch.sigmoid(a * b if product else a + b)
    return x * (weight + offset if offset else weight)


@without_autocast
def _sum_of_products(x: Tensor, y: Tensor, like: Tensor) -> Tensor:
    """The sum of x * y over the axes along which ``like`` has size 1, without x * y, in the shape and dtype of it.

    As an Einstein sum it is a matrix product, in which ``y`` has no axes along which it only broadcasts.
    """
    letters = "abcdefgh"[: x.dim()]
    of_y = "".join(letter for letter, size in zip(letters, y.shape, strict=True) if size != 1)
    of_sum = "".join(letter for letter, size in zip(letters, like.shape, strict=True) if size != 1)
    dtype = torch.promote_types(x.dtype, y.dtype)
    y = y.reshape([size for size in y.shape if size != 1])
    return torch.einsum(f"{letters},{of_y}->{of_sum}", x.to(dtype), y.to(dtype)).reshape(like.shape).to(like.dtype)
