"""The sizes of the tensors that operators return, measured without a profiler or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LargestOutput(TorchDispatchMode):
    """Keeps the largest number of elements in the storage of any operator's output."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None) -> Any:
        output = operator(*arguments, **(keywords or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                stored = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, stored)
        return output


def largest_output(run: Callable[[], Any]) -> int:
    """The elements of the largest tensor that an operator returns in `run()`; a view counts as its storage."""
    with _LargestOutput() as mode:
        run()
    return mode.elements
