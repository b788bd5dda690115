"""How much memory attention takes beside queries, keys and values, and what fits a budget.

Closed forms with a margin: results, gradients, and what is alive at once while a tile or a few groups are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# What is computed at once without a budget: large enough for matrix products to run at full speed.
TILE_BYTES = 4 * 2**20
LEAST_TILE_BYTES = 2**11  # below which tiles are too small to be worth their while


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def result_bytes(q: Tensor, k: Tensor, v: Tensor, training: bool) -> int:
    """The output, the log-sum-exp of the rows and, in training, the gradients of q, k and v.

    Gradients of half precision are summed in single precision first.
    """
    wide = max(4, q.element_size())
    taken = q.shape[0] * q.shape[1] * q.shape[2] * (v.shape[3] * q.element_size() + wide)
    if training:
        summed = q.element_size() if q.element_size() >= 4 else 4 + q.element_size()
        taken += summed * (q.numel() + k.numel() + v.numel())
    return taken


def largest_tile(budget: int | None, taken: Callable[[int], int]) -> int:
    """The largest of `TILE_BYTES`, its half, its quarter and so on with which no more than the budget is taken.

    Args:
        budget: bytes, or None.
        taken: all bytes that are taken with a tile of so many.

    Raises:
        ValueError: when the smallest tile takes more, with the smallest budget that works.
    """
    tile_bytes = TILE_BYTES
    if budget is None:
        return tile_bytes
    while taken(tile_bytes) > budget:
        tile_bytes //= 2
        if tile_bytes < LEAST_TILE_BYTES:
            least = taken(LEAST_TILE_BYTES)
            raise ValueError(f"`memory_budget` of {budget} bytes cannot be met: {least} is the smallest that works")
    return tile_bytes


_SCRATCH: dict[Any, Callable[..., int]] = {}


def register_scratch(operator: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator: the function says how many bytes ``operator`` takes while it runs, beyond its results."""

    def register(function: Callable[..., int]) -> Callable[..., int]:
        _SCRATCH[operator] = function
        return function

    return register


def scratch_bytes(operator: Any, args: Sequence[Any]) -> int:
    """The bytes that an operator takes while it runs, beyond its results; 0 for those that take few."""
    scratch = _SCRATCH.get(operator)
    return 0 if scratch is None else scratch(*args)
