"""Time, memory and what is kept for backward, of functions that take turns."""

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MIB = 2**20
os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says nothing of its own


class Row(NamedTuple):
    """A figure, what it is compared with, and the ratio that it is to stay within, if there is one.

    Attributes:
        what: is measured.
        beside: what it is compared with.
        ours: its figure; None where nothing was measured, and ``note`` says why.
        other: the figure of what it is compared with.
        unit: of both.
        limit: of the ratio.
        spread: the quartiles of the ratios of the single turns; None where a figure is not one of time.
        note: what else is to be said.
        group: whose figure it is, in tables that have a line for each.
        measure: which figure it is, in tables that have a column for each.
    """

    what: str
    beside: str
    ours: float | None
    other: float | None
    unit: str
    limit: float | None = None
    spread: tuple[float, float] | None = None
    note: str = ""
    group: str = ""
    measure: str = ""

    @property
    def ratio(self) -> float | None:
        """Of ours to the other: in times, of the two medians."""
        return self.ours / self.other if self.ours is not None and self.other else None

    def saved(self) -> dict[str, Any]:
        """As it stands in a file."""
        return self._asdict() | {"ratio": self.ratio}


class Bench:
    """Measures functions on a device.

    Args:
        device: "cpu" or "cuda".
        runs: of which a median is taken, after one that does not count.
        small: whether sizes are cut, to see that all of it runs.
        shape: of the volume, where it is chosen; each subject has one of its own.
        channels: where they are chosen.
        dtype: of volumes and parameters.
        names: of the mechanisms to measure; none: all.
    """

    def __init__(
        self,
        device: str,
        runs: int,
        small: bool,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        dtype: torch.dtype = torch.float32,
        names: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        self.runs = runs
        self.small = small
        self.shape = shape
        self.channels = channels
        self.dtype = dtype
        self.names = names

    @property
    def standard(self) -> bool:
        """Whether the sizes are those for which limits are asked."""
        return not self.small and self.shape is None and self.channels is None and self.dtype == torch.float32

    def size(self, size: int) -> int:
        """An extent or a number of tokens, cut where the bench is small."""
        return size // 4 if self.small else size

    def volume(self, *shape: int) -> tuple[int, ...]:
        """The shape that was chosen, or else this one, cut where the bench is small."""
        return self.shape or tuple(self.size(extent) for extent in shape)

    def width(self, channels: int) -> int:
        """The channels that were chosen, or else these, cut where the bench is small."""
        return self.channels or (max(8, channels // 8) if self.small else channels)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of the mechanisms that are to be measured."""
        return [name for name in names if not self.names or name in self.names]

    def random(self, *shape: int) -> Tensor:
        """Normally distributed values that require a gradient."""
        return torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True)

    def placed(self, net: nn.Module) -> nn.Module:
        """A module on the device, in the dtype of the volumes."""
        return net.to(self.device, self.dtype)

    def turns(self, *functions: Callable[[], Any]) -> list[list[float]]:
        """The seconds of every run of each, taken in turns."""
        taken: list[list[float]] = [[] for _ in functions]
        for function in functions:
            function()
        for _ in range(self.runs):
            for function, times in zip(functions, taken, strict=True):
                self._wait()
                start = time.perf_counter()
                function()
                self._wait()
                times.append(time.perf_counter() - start)
        return taken

    def seconds(self, *functions: Callable[[], Any]) -> list[float]:
        """The median of each, taken in turns."""
        return [statistics.median(times) for times in self.turns(*functions)]

    def peak(self, function: Callable[[], Any]) -> int:
        """The most bytes that are alive at once, beyond those before it."""
        function()  # first calls allocate what stays
        gc.disable()  # what of others is freed meanwhile would be taken off
        try:
            return self._peak(function)
        finally:
            gc.enable()

    def _peak(self, function: Callable[[], Any]) -> int:
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            function()
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        ordered = sorted(events, key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in ordered))

    def time(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None, **of) -> Row:
        """A row of two times."""
        return timed(what, beside, *self.turns(ours, other), limit=limit, **of)

    def memory(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None, **of) -> Row:
        """A row of two peaks."""
        return Row(what, beside, self.peak(ours) / MIB, self.peak(other) / MIB, "MiB", limit, **of)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def timed(what: str, beside: str, ours: Sequence[float], other: Sequence[float], unit: str = "s", **of) -> Row:
    """A row of the medians of two functions that took turns, and the quartiles of the ratios of single turns."""
    ratios = [one / two for one, two in zip(ours, other, strict=True)]
    medians = statistics.median(ours), statistics.median(other)
    return Row(what, beside, *medians, unit, spread=quartiles(ratios), **of)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return low, high


def kept(function: Callable[..., Tensor], *inputs: Tensor) -> int:
    """The bytes that autograd keeps for backward in a forward pass, beyond inputs, output, parameters and buffers.

    Every storage counts once, and whole, however many tensors of it are saved.
    """
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage  # which keeps it alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*inputs)
    there = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    for tensor in (*inputs, output, *there):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in held.values())


def inference(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
    """A forward pass."""
    return torch.no_grad()(lambda: function(*inputs))


def training(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A forward and a backward pass, by the inputs and the parameters."""
    wanted = [*inputs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    upstream = torch.ones_like(function(*inputs), memory_format=torch.contiguous_format)
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def sizes(shape: Sequence[int], channels: int | None = None) -> str:
    """A volume in words."""
    extents = f"{shape[0]}³" if len(set(shape)) == 1 else " × ".join(map(str, shape))
    return extents if channels is None else f"{extents}, C = {channels}"


def voxels(shape: Sequence[int]) -> int:
    """N."""
    return math.prod(shape)
