"""Products of x with gates that broadcast to it. Only x and the gates are saved for backward.

For a chain of products, autograd saves another whole map for every gate except the first, and one more for the sigmoid
of a sum of two gates. Here backward recomputes them block by block.
"""

from functools import partial

import torch
from torch import Tensor

from attn3d.layers.blockwise import elementwise, runs_eagerly


def gate(x: Tensor, a: Tensor, b: Tensor | None = None) -> Tensor:
    """Computes x * a or x * a * b, saving only x and the gates for backward.

    Args:
        x: a tensor of any shape.
        a: a gate that broadcasts to ``x`` and has the same number of axes.
        b: another gate, or None.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if b is None:
        return (x * a).to(x.dtype)
    if not torch.jit.is_scripting() and runs_eagerly(x):
        return elementwise(_product, x, a, b)
    return _product(x, a, b)


def joint_gate(x: Tensor, a: Tensor, b: Tensor, product: bool = False, offset: float = 0.0) -> Tensor:
    """Computes x * (offset + sigmoid(a + b)), saving only x, a and b for backward.

    Args:
        x: a tensor of any shape.
        a: a tensor that broadcasts to ``x`` and has the same number of axes.
        b: another such tensor.
        product: whether to use sigmoid(a * b) instead.
        offset: added to the sigmoid.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if not torch.jit.is_scripting() and runs_eagerly(x):
        return elementwise(partial(_joint, product=product, offset=offset), x, a, b)
    return _joint(x, a, b, product, offset)


def larger_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Computes max(x * a, x * b), saving only x, a and b for backward. Equal products get half the gradient each.

    Args:
        x: a tensor of any shape.
        a: a gate that broadcasts to ``x`` and has the same number of axes.
        b: another such gate.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if not torch.jit.is_scripting() and runs_eagerly(x):
        return elementwise(_larger_in_a_block, x, a, b)
    return _larger(x, a, b)


def weighted_sum(maps: list[Tensor], gates: list[Tensor]) -> Tensor:
    """Computes the sum of maps times gates. Autograd saves only these, since the gradient of a sum needs no terms.

    Args:
        maps: one or more tensors of the same shape.
        gates: one gate per map, which broadcasts to it and has the same number of axes.

    Returns:
        a tensor with the shape, dtype and memory format of the first map.
    """
    y = maps[0] * gates[0]
    for index in range(1, len(maps)):
        y = y + maps[index] * gates[index]
    return y.to(maps[0].dtype)


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (x * a * b).to(x.dtype)


def _joint(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    weight = torch.sigmoid(a * b if product else a + b)
    return (x * (weight + offset if offset != 0.0 else weight)).to(x.dtype)


def _larger_in_a_block(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Equals `_larger`. Its gradient is faster, since it fills no masks; without a gradient, it is slower."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    share = 0.5 + 0.5 * (x * (a - b)).detach().sign()  # of a: 1 where x * a is larger, 1/2 where both are equal
    return (x * torch.lerp(b.to(dtype), a.to(dtype), share.to(dtype))).to(x.dtype)


def _larger(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(x * a, x * b).to(x.dtype)
