"""What a module must know of how it is run: whether it is being traced, compiled or exported, and under autocast.

In a capture a size may be a symbol or a tensor, on which Python's ``if``, ``min`` and ``max`` would hold for one size
alone. Half precision is not enough for softmax, Gram matrices and sums over all voxels: they are computed in at least
single precision, with autocast off.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def needs_plain_operators() -> bool:
    """Whether a trace or an ONNX export is being taken.

    Neither keeps a `torch.autograd.Function` or an operator written in Python, and a size that is read as a number
    becomes a constant of a trace. Scripting is asked separately: TorchScript answers `torch.jit.is_scripting` while
    it compiles, and leaves out the branch that is not taken.
    """
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def is_captured() -> bool:
    """Whether a trace, an export or a compiled graph is being taken, which is to hold for other sizes too."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is on, under which autograd takes no hooks on what it keeps."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class NotScriptable:
    """A base of modules that TorchScript does not compile; its error says how a deployment goes on."""

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            f"{type(self).__name__} does not compile under TorchScript, which PyTorch has deprecated: capture it by"
            " `torch.jit.trace`, `torch.export` or `torch.onnx.export`"
        )


def smaller(x: Any, y: Any) -> Any:
    """The smaller of two sizes, elementwise of arrays and tensors; in a capture it holds for every size."""
    if isinstance(x, Tensor):
        return x.clamp(max=y)
    if isinstance(y, Tensor):
        return y.clamp(max=x)
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.minimum(x, y)
    return torch.sym_min(x, y)


def larger(x: Any, y: Any) -> Any:
    """The larger of two, as `smaller`."""
    if isinstance(x, Tensor):
        return x.clamp(min=y)
    if isinstance(y, Tensor):
        return y.clamp(min=x)
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.maximum(x, y)
    return torch.sym_max(x, y)


def takes_python_operators(x: Tensor) -> bool:
    """Whether a `torch.autograd.Function` may stand in for plain operators on ``x``.

    A compiler fuses plain operators itself and decides what is saved for backward. For a subclass such as MetaTensor,
    a function returns a view, which nothing may change in place.
    """
    # Of the type alone: a function mode that is on does not make a tensor a subclass.
    plain = type(x) is Tensor or type(x).__torch_function__ is torch._C._disabled_torch_function_impl
    return plain and not is_captured()


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in single precision, or in its own where that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Autocast off on the device of ``x``; a tensor on "meta" counts as one on the CPU."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with autocast off on the device of its first tensor."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        given = next(arg for arg in (*args, *options.values()) if isinstance(arg, Tensor))
        with no_autocast(given):
            return function(*args, **options)

    return run
