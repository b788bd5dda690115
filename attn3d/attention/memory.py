"""The memory that attention uses in addition to queries, keys and values, and the tile size that fits a budget.

Closed forms with a margin: results, gradients, and the temporaries of a tile or of a few groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Without a budget. Large enough for matrix products to run at full speed.
TILE_BYTES = 4 * 2**20
LEAST_TILE_BYTES = 2**11  # smaller tiles are too slow


def needs_grad(*tensors: Tensor | None) -> bool:
    """Returns whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def result_bytes(q: Tensor, k: Tensor, v: Tensor, training: bool) -> int:
    """Returns the bytes of the output, the log-sum-exp of the rows and, in training, the gradients of q, k and v.

    Gradients in half precision are summed in single precision first.
    """
    wide = max(4, q.element_size())
    taken = q.shape[0] * q.shape[1] * q.shape[2] * (v.shape[3] * q.element_size() + wide)
    if training:
        summed = q.element_size() if q.element_size() >= 4 else 4 + q.element_size()
        taken += summed * (q.numel() + k.numel() + v.numel())
    return taken


def largest_tile(budget: int | None, taken: Callable[[int], int]) -> int:
    """Halves `TILE_BYTES` until the memory is within the budget, and returns the result.

    Args:
        budget: bytes, or None.
        taken: returns the memory in bytes for a tile of the given bytes.

    Raises:
        ValueError: if the smallest tile exceeds the budget; the message gives the smallest budget that works.
    """
    tile_bytes = TILE_BYTES
    if budget is None:
        return tile_bytes
    while taken(tile_bytes) > budget:
        tile_bytes //= 2
        if tile_bytes < LEAST_TILE_BYTES:
            raise ValueError(f"`memory_budget` must be at least {taken(LEAST_TILE_BYTES)} bytes, got {budget}")
    return tile_bytes


_SCRATCH: dict[Any, Callable[..., int]] = {}


def register_scratch(operator: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator that registers a function which returns the temporary bytes of ``operator``, beyond its results."""

    def register(function: Callable[..., int]) -> Callable[..., int]:
        _SCRATCH[operator] = function
        return function

    return register


def scratch_bytes(operator: Any, args: Sequence[Any]) -> int:
    """Returns the temporary bytes of an operator, beyond its results; 0 if none are registered."""
    scratch = _SCRATCH.get(operator)
    return 0 if scratch is None else scratch(*args)
