"""Work in a process group of the CPU."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

_Result = TypeVar("_Result")


def in_group(function: Callable[..., _Result], *args: Any, **options: Any) -> _Result:
    """Returns ``function(*args)``, computed in a process group with these options.

    Nothing may refer to the group afterwards, not even a reference cycle. Otherwise its threads outlive the interpreter
    and, on a busy machine, release a last tensor when Python has ended, which aborts the process.
    """
    dist.init_process_group("gloo", **options)
    result = function(*args)
    dist.destroy_process_group()
    gc.collect()
    return result
