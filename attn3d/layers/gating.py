"""x times gates that broadcast to it, such that backward keeps x and the gates and nothing of the size of x.

Written as a chain of products, autograd keeps a whole map more for every gate but the first, and another for the
sigmoid of a sum of two. Here backward computes them again, block by block.
"""

from functools import partial

import torch
from torch import Tensor

from attn3d.layers.blockwise import elementwise, runs_eagerly


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


def larger_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """max(x * a, x * b), keeping x, a and b alone for backward; where both are the same, each has half the gradient.

    Args:
        x: any shape.
        a: broadcasts to ``x``, and has as many axes.
        b: the same.

    Returns:
        a tensor with the shape, dtype and memory format of ``x``.
    """
    if runs_eagerly(x):
        return _larger_blockwise(x, a, b)
    return _larger(x, a, b)


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
    return elementwise(_product, x, a, b)


@torch.jit.unused
def _joint_gate_blockwise(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    return elementwise(partial(_joint, product=product, offset=offset), x, a, b)


@torch.jit.unused
def _larger_blockwise(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return elementwise(_larger, x, a, b)


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (x * a * b).to(x.dtype)


def _joint(x: Tensor, a: Tensor, b: Tensor, product: bool, offset: float) -> Tensor:
    weight = torch.sigmoid(a * b if product else a + b)
    return (x * (weight + offset if offset != 0.0 else weight)).to(x.dtype)


def _larger(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(x * a, x * b).to(x.dtype)
