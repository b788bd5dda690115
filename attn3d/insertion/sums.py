"""Attention on skips that a network adds to the decoder's map inline, without a module that is called with both.

While the network runs, a `torch.overrides.TorchFunctionMode` intercepts its sums. A stage registers its output as a
skip, and a sum with this tensor then uses the attended skip; other uses of the tensor are unchanged. The mode belongs
to one call of the network in one thread, and no state is kept in modules. When a checkpointed stage is recomputed in
backward, no mode is active and none is needed, since the sum is outside the stage.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    handle_torch_function,
    has_torch_function_unary,
)

_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE)


class SkipSums(TorchFunctionMode):
    """Attends the skips of one call of a network where they are added to another map.

    Args:
        call: the frame of the call, or None for the mode that is traced.
    """

    def __init__(self, call: FrameType | None = None) -> None:
        super().__init__()
        self.call = call
        self.is_open = False
        self.skips: list[Tensor] = []
        self.mechanisms: list[Any] = []
        self.attended: list[Tensor | None] = []

    def add(self, skip: Tensor, mechanisms: Any) -> None:
        """Registers a tensor as a skip."""
        self.skips.append(skip)
        self.mechanisms.append(mechanisms)
        self.attended.append(None)

    def close(self) -> None:
        """Clears the state of the call."""
        self.call = None
        self.is_open = False
        self.skips.clear()
        self.mechanisms.clear()
        self.attended.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is leave_skip:
            self.add(*args)
            return args[0]
        if func in SUMS and len(args) > 1:
            left, right, *more = args
            attended = [left, right]
            for index, skip in enumerate(self.skips):
                if right is skip:
                    signal = left
                    if func in _IN_PLACE and self.is_gated(index):
                        signal = left.clone()  # saved for backward, while the sum overwrites ``left``
                    attended[1] = self.attend(index, signal)
                elif left is skip:
                    attended[0] = self.attend(index, right)
            args = (*attended, *more)
        return func(*args, **(kwargs or {}))

    def is_gated(self, index: int) -> bool:
        """Returns whether the attention on a skip depends on the map that the skip is added to."""
        return any(getattr(mechanism, "takes_signal", False) for mechanism in self.mechanisms[index])

    def attend(self, index: int, signal: Tensor) -> Tensor:
        """Returns the attended skip. It is computed once for all sums unless a mechanism takes a gating signal."""
        mechanisms = self.mechanisms[index]
        if self.is_gated(index):
            return mechanisms.attend(self.skips[index], signal)
        found = self.attended[index]
        if found is None:
            found = self.attended[index] = mechanisms.attend(self.skips[index], signal)
        return found


_TRACED = SkipSums()  # for `torch.compile`, which traces one call at a time and only modes that exist already


def open_sums(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """A pre-hook of the module that adds the skips."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED.is_open = True
        _TRACED.__enter__()
    else:
        _close_interrupted()
        SkipSums(sys._getframe(1)).__enter__()


def _close_interrupted() -> None:
    """Closes the modes of calls that Ctrl-C ended: PyTorch calls `close_sums` after every `Exception`, but not then."""
    while modes := _get_current_function_mode_stack():
        mode = modes[-1]
        if not isinstance(mode, SkipSums) or mode.call is None or _is_running(mode.call):
            break
        _pop_mode().close()


def _is_running(call: FrameType) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def close_sums(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    """A hook of the module that adds the skips, which also runs after an error."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED.__exit__(None, None, None)
        _TRACED.close()
    else:
        _pop_mode().close()


def leave_skip(skip: Tensor, mechanisms: nn.Module) -> Tensor:
    """Registers ``skip`` and its ``mechanisms`` with the active `SkipSums`, which attends it where it is added.

    Raises:
        TypeError: under torch.fx.
    """
    if torch.compiler.is_dynamo_compiling():
        if not _TRACED.is_open:
            torch._dynamo.graph_break()  # only the stage is compiled, and the mode is active outside
        if _TRACED.is_open:
            _TRACED.add(skip, mechanisms)
            return skip
    if isinstance(skip, torch.fx.Proxy):
        raise TypeError(
            "torch.fx cannot trace attention on skips that the network adds inline; torch.export, torch.compile and"
            " torch.jit.trace can"
        )
    if has_torch_function_unary(skip):
        return handle_torch_function(leave_skip, (skip,), skip, mechanisms)
    return skip
