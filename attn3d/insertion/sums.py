"""Attention on skips that a network adds to the decoder's map inline, without a module that is called with both.

While the network runs, a `torch.overrides.TorchFunctionMode` intercepts its sums. A stage registers its output as a
skip, and a sum with this tensor, or with this tensor in another format or dtype, then uses the attended skip; other
uses of the tensor are unchanged. The mode belongs to one call of the network in one thread, and no state is kept in
modules. When a checkpointed stage is recomputed in backward, no mode is active and none is needed, since the sum is
outside the stage.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    handle_torch_function,
    has_torch_function_unary,
)

_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE)

# They return their argument where there is nothing to change, and otherwise another tensor of the same map.
CHANGES = (
    *(Tensor.contiguous, Tensor.to, Tensor.type, Tensor.type_as),
    *(Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
    *(getattr(functional, name) for name in dir(functional) if name.startswith("dropout")),
)


class _Skip:
    """A map that is a skip, and the mechanisms that attend it.

    Args:
        skip: the map.
        mechanisms: their container.
        original: the output of the stage, if ``skip`` is this map in another format or dtype, or on another device.

    Attributes:
        is_gated: whether the attention depends on the map that the skip is added to. If not, it is computed once.
        attended: the attended map, after its computation.
    """

    def __init__(self, skip: Tensor, mechanisms: Any, original: Tensor | None = None) -> None:
        self.skip = skip
        self.mechanisms = mechanisms
        self.original = original
        self.is_gated = any(hasattr(mechanism, "attn3d_signal") for mechanism in mechanisms)
        self.attended: Tensor | None = None

    def attend(self, signal: Tensor) -> Tensor:
        """Returns the attended map, given the map that the skip is added to."""
        if self.is_gated:
            return self._attended(signal)
        if self.attended is None:
            self.attended = self._attended(signal)
        return self.attended

    def _attended(self, signal: Tensor) -> Tensor:
        if self.original is None:
            return self.mechanisms.attend(self.skip, signal)
        # The mechanisms have the dtype and device of the stage.
        return self.mechanisms.attend(self.skip.to(self.original), signal.to(self.original)).to(self.skip)


class SkipSums(TorchFunctionMode):
    """Attends the skips of one call of a network where they are added to another map.

    Args:
        frame: the frame of the call, or None for the mode that is traced.
    """

    def __init__(self, frame: FrameType | None = None) -> None:
        super().__init__()
        self.frame = frame
        self.calls = 0  # of nested modules that have this mode open; only of the mode that is traced
        self.skips: list[_Skip] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is leave_skip:
            around = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, SkipSums)]
            for mode in (self, *around):  # of the modules around this one, which may add the skip instead
                mode.skips.append(_Skip(*args))
            return args[0]
        if func in SUMS and len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            left, right, *more = args
            attended = [left, right]
            for each in self.skips:
                if right is each.skip:
                    # A gate saves its signal for backward, while the sum may overwrite ``left``.
                    signal = left.clone() if each.is_gated and func in _IN_PLACE else left
                    attended[1] = each.attend(signal)
                elif left is each.skip:
                    attended[0] = each.attend(right)
            args = (*attended, *more)
        output = func(*args, **(kwargs or {}))
        if func in CHANGES and output is not args[0]:
            same = [each for each in self.skips if each.skip is args[0]]
            self.skips += [
                _Skip(output, each.mechanisms, each.skip if each.original is None else each.original) for each in same
            ]
        return output


_TRACED = SkipSums()  # for `torch.compile`, which traces one call at a time and only modes that exist already


def open_sums(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """A pre-hook of the module that contains the sums."""
    if torch.compiler.is_dynamo_compiling():
        if not _TRACED.calls:
            _TRACED.__enter__()
        _TRACED.calls += 1
    else:
        _close_interrupted()
        SkipSums(sys._getframe(1)).__enter__()


def _close_interrupted() -> None:
    """Closes the modes of calls that Ctrl-C ended: PyTorch calls `close_sums` after every `Exception`, but not then."""
    while modes := _get_current_function_mode_stack():
        mode = modes[-1]
        if not isinstance(mode, SkipSums) or mode.frame is None or _is_running(mode.frame):
            break
        _pop_mode()


def _is_running(call: FrameType) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def close_sums(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    """A hook of the module that contains the sums, which also runs after an error."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED.calls -= 1
        if not _TRACED.calls:
            _TRACED.__exit__(None, None, None)
            _TRACED.skips.clear()
    else:
        _pop_mode()


def leave_skip(skip: Tensor, mechanisms: nn.Module) -> Tensor:
    """Registers ``skip`` and its ``mechanisms`` with the active `SkipSums`, which attends it where it is added.

    Raises:
        TypeError: under torch.fx, and in a strict export.
    """
    if torch.compiler.is_dynamo_compiling():
        if torch.compiler.is_exporting():  # which would leave the skip without attention
            raise TypeError(
                "attention on skips that the network adds inline cannot be exported with `strict=True`; use the default"
                " `strict=False`"
            )
        if not _TRACED.calls:
            torch._dynamo.graph_break()  # only the stage is compiled, and the mode is active outside
        if _TRACED.calls:
            _TRACED.skips.append(_Skip(skip, mechanisms))
            return skip
    if isinstance(skip, torch.fx.Proxy):
        raise TypeError(
            "torch.fx cannot trace attention on skips that the network adds inline; torch.export, torch.compile and"
            " torch.jit.trace can"
        )
    if has_torch_function_unary(skip):
        return handle_torch_function(leave_skip, (skip,), skip, mechanisms)
    return skip
