"""Where half precision is not enough: softmax, Gram matrices and sums over all voxels."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in single precision, or in its own where that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Autocast off where ``x`` is; a tensor without memory counts as one of the CPU's."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with autocast off: its products are in the dtype of what it is given, as it says."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        given = next(arg for arg in (*args, *options.values()) if isinstance(arg, Tensor))
        with no_autocast(given):
            return function(*args, **options)

    return run
