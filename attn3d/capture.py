"""Helpers for tracing, compilation and export, and for autocast.

During a capture (a trace, an export or a compiled graph) a size may be a symbol or a tensor, and Python's ``if``,
``min`` and ``max`` would be valid for one size only. Softmax, Gram matrices and sums over all voxels are computed in at
least single precision with autocast disabled, because half precision is not accurate enough.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# The names of the module inside `torch.compile` and inside PyTorch's wrapper for activation checkpointing.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")


def needs_plain_operators() -> bool:
    """Returns whether a trace or an ONNX export is in progress.

    Neither supports a `torch.autograd.Function` or custom operators in Python, and sizes read as numbers become
    constants of a trace. Scripting is checked separately by `torch.jit.is_scripting`, which TorchScript evaluates while
    it compiles.
    """
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def is_captured() -> bool:
    """Returns whether a trace, an export or a compilation is in progress. Its result must be valid for all sizes."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def is_eager() -> bool:
    """Returns whether neither a capture nor a transform of `torch.func` is in progress."""
    # Written out and not composed of the functions beside it, since every forward pass asks.
    captured = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    return not captured and torch._C._functorch.peek_interpreter_stack() is None


def is_func_gradient() -> bool:
    """Returns whether `torch.func.grad`, `vjp` or `jacrev` is active, in which custom operators have no gradient."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(one.key() == torch._C._functorch.TransformType.Grad for one in stack)


def is_forward_mode() -> bool:
    """Returns whether derivatives are computed in forward mode, as by `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def is_batched(gradient: Tensor) -> bool:
    """Returns whether a backward pass computes several gradients at once, as `torch.autograd.functional.jacobian` does
    with ``vectorize``. Then nothing may be written in place to tensors that are not batched."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def unwrapped(net: nn.Module) -> nn.Module:
    """Returns the module inside `torch.compile` and PyTorch's wrapper for activation checkpointing, or ``net``.

    Raises:
        TypeError: if it is not a module, such as the class of a network.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be a torch.nn.Module, got {net!r:.80}")
    while name := next((name for name in _WRAPPED if name in net._modules), ""):
        net = net.get_submodule(name)
    return net


def plain_path(path: str) -> str:
    """Returns the path of a module, or a key, without the names that these wrappers add; it finds the same module."""
    return ".".join(name for name in path.split(".") if name not in _WRAPPED)


def modules_by_path(net: nn.Module, aliases: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules except these wrappers, by their plain path; with ``aliases``, once for every path."""
    for path, module in net.named_modules(remove_duplicate=not aliases):
        if unwrapped(module) is module:
            yield plain_path(path), module


def without_compiled_code() -> AbstractContextManager[None]:
    """Returns a context in which compiled modules run as Python; their compiled code does not call new hooks."""
    # Nothing is compiled before PyTorch's compiler is imported, which takes a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class NotScriptable:
    """Base class of modules that do not support TorchScript; the error names the alternatives."""

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            f"{type(self).__name__} does not support TorchScript, which PyTorch has deprecated: use"
            " `torch.jit.trace`, `torch.export` or `torch.onnx.export`"
        )


def smaller(x: Any, y: Any) -> Any:
    """Returns the smaller of two sizes, elementwise for arrays and tensors. In a capture it is valid for every size."""
    if isinstance(x, Tensor):
        return x.clamp(max=y)
    if isinstance(y, Tensor):
        return y.clamp(max=x)
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.minimum(x, y)
    if isinstance(x, int) and isinstance(y, int):  # PyTorch 2.10 cannot compile `sym_min` of two numbers
        return min(x, y)
    return torch.sym_min(x, y)


def larger(x: Any, y: Any) -> Any:
    """Returns the larger of two sizes, like `smaller`."""
    if isinstance(x, Tensor):
        return x.clamp(min=y)
    if isinstance(y, Tensor):
        return y.clamp(min=x)
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.maximum(x, y)
    if isinstance(x, int) and isinstance(y, int):
        return max(x, y)
    return torch.sym_max(x, y)


def at_least_single(x: Tensor) -> Tensor:
    """Converts ``x`` to single precision, unless its precision is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Returns a context that disables autocast on the device of ``x``; "meta" is treated as the CPU."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that disables autocast on the device of the first tensor argument."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        given = next((arg for arg in (*args, *options.values()) if isinstance(arg, Tensor)), None)
        with nullcontext() if given is None else no_autocast(given):
            return function(*args, **options)

    return run
