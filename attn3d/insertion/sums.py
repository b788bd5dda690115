"""Skips that a network adds to the decoder's map in its own forward, where no module is called with both.

While the network runs, a `torch.overrides.TorchFunctionMode` sees its sums. A stage that gives a skip says so, and the
sum that reads the very same tensor gets it attended; the network's other readers of it do not. The mode belongs to one
call of the network, in one thread: nothing is kept in a module. Where a stage is computed again in backward there is
no such call, and nothing to do, as the sum is not in the stage.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, handle_torch_function, has_torch_function_unary

_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE)


class SkipSums(TorchFunctionMode):
    """Attends the skips of one call of a network where they are added to another map."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self.skips: list[Tensor] = []
        self.mechanisms: list[Any] = []
        self.attended: list[Tensor | None] = []

    def add(self, skip: Tensor, mechanisms: Any) -> None:
        """Says that a tensor is a skip."""
        self.skips.append(skip)
        self.mechanisms.append(mechanisms)
        self.attended.append(None)

    def close(self) -> None:
        """Forgets the call."""
        self.is_open = False
        self.skips.clear()
        self.mechanisms.clear()
        self.attended.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is leave_skip:
            self.add(*args)
            return args[0]
        if func in SUMS and len(args) > 1:
            left, right = args[0], args[1]
            for index, skip in enumerate(self.skips):
                if right is skip:
                    met = left.clone() if func in _IN_PLACE and self.is_gated(index) else left  # kept for backward
                    args = (left, self.attend(index, met), *args[2:])
                elif left is skip:
                    args = (self.attend(index, right), right, *args[2:])
        return func(*args, **(kwargs or {}))

    def is_gated(self, index: int) -> bool:
        """Whether what attends a skip depends on the map that it is added to."""
        return any(getattr(mechanism, "takes_signal", False) for mechanism in self.mechanisms[index])

    def attend(self, index: int, signal: Tensor) -> Tensor:
        """The skip, attended; once, where two sums read it and no mechanism depends on the other map."""
        mechanisms = self.mechanisms[index]
        if self.is_gated(index):
            return mechanisms.attend(self.skips[index], signal)
        found = self.attended[index]
        if found is None:
            found = self.attended[index] = mechanisms.attend(self.skips[index], signal)
        return found


_TRACED = SkipSums()  # of what `torch.compile` traces: it traces one call at a time, and only modes that it finds


def open_sums(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """A pre-hook of the module that adds the skips."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED.is_open = True
        _TRACED.__enter__()
    else:
        SkipSums().__enter__()


def close_sums(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    """A hook of the module that adds the skips, which runs whatever happens."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED.__exit__(None, None, None)
        _TRACED.close()
    else:
        _pop_mode().close()


def leave_skip(skip: Tensor, mechanisms: nn.Module) -> Tensor:
    """Says to the call that runs that ``skip`` is one, whose ``mechanisms`` are to attend it where it is added.

    Raises:
        TypeError: under torch.fx.
    """
    if torch.compiler.is_dynamo_compiling():
        if not _TRACED.is_open:
            torch._dynamo.graph_break()  # the stage alone is compiled: the call runs outside
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
