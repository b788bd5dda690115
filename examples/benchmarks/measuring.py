"""Measures time, peak memory and saved activations of functions that take turns."""

import functools
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.memory import peak

MIB = 2**20
# The fixed piece of work is a product of square matrices with this many rows. It takes some milliseconds.
WORK = {"cpu": 640, "cuda": 4096}
WARM_UP = 20  # runs of the fixed work before the first turn; their minimum is the first value of the best time
# The machine is loaded if a quarter of the runs of the fixed work take longer than the best time by this factor.
LOADED = 1.25
os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # no messages of the profiler


class Row(NamedTuple):
    """A figure, the figure that it is compared with, and the limit of their ratio.

    Attributes:
        what: what is measured.
        beside: what it is compared with.
        ours: the figure; None if nothing was measured, for the reason in ``note``.
        other: the figure for comparison.
        unit: the unit of both.
        limit: the limit of the ratio, or None.
        spread: the quartiles of the ratios of the single turns; None for other figures than times.
        note: a remark.
        group: the line of the figure in a table by group.
        measure: the column of the figure in a table by group.
        slowdown: the time of the fixed piece of work during the turns, as a multiple of its best time; None for other
            figures than times.
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
    slowdown: float | None = None

    @property
    def ratio(self) -> float | None:
        """The ratio of the two figures; for times, that of the medians."""
        return self.ours / self.other if self.ours is not None and self.other else None

    @property
    def loaded(self) -> bool:
        """Whether other processes used the machine. Then the ratio is not reliable, and its limit is not checked."""
        return is_loaded(self.slowdown)

    def saved(self) -> dict[str, Any]:
        """The row as plain data for JSON."""
        return self._asdict() | {"ratio": self.ratio, "loaded": self.loaded}


class Turns(NamedTuple):
    """The times of functions that took turns.

    Attributes:
        seconds: the times of all runs, for each function.
        slowdown: the third quartile of the times of the fixed piece of work before, between and after the turns,
            divided by its best time.
    """

    seconds: list[list[float]]
    slowdown: float


@dataclass
class Bench:
    """Measures functions on a device.

    Attributes:
        device: "cpu" or "cuda".
        runs: number of runs for the median, after a warm-up run.
        small: whether to use small sizes, to check that everything runs.
        shape: shape of the volume; None for that of the subject.
        channels: number of channels; None for that of the subject.
        dtype: dtype of volumes and parameters.
        names: names of the mechanisms to measure; empty for all.
        threads: numbers of CPU threads, for subjects that support several.
        beside: an older checkout of the library, for subjects that support it.
    """

    device: str
    runs: int
    small: bool
    shape: tuple[int, ...] | None = None
    channels: int | None = None
    dtype: torch.dtype = torch.float32
    names: Sequence[str] = ()
    threads: Sequence[int] = ()
    beside: Path | None = None

    def __post_init__(self) -> None:
        rows = WORK[self.device]
        self._factor, self._product = (torch.ones(rows, rows, device=self.device) for _ in range(2))
        self._best: dict[int, float] = {}  # by number of threads, the shortest time of the fixed work

    @property
    def standard(self) -> bool:
        """Whether the sizes are those that the limits are for."""
        return not self.small and self.shape is None and self.channels is None and self.dtype == torch.float32

    def size(self, size: int) -> int:
        """An extent or a number of tokens, reduced if the bench is small."""
        return size // 4 if self.small else size

    def volume(self, *shape: int) -> tuple[int, ...]:
        """The chosen shape, or the given one, reduced if the bench is small."""
        return self.shape or tuple(self.size(extent) for extent in shape)

    def width(self, channels: int) -> int:
        """The chosen number of channels, or the given one, reduced if the bench is small."""
        return self.channels or (max(8, channels // 8) if self.small else channels)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names of those mechanisms that are to be measured."""
        return [name for name in names if not self.names or name in self.names]

    def random(self, *shape: int) -> Tensor:
        """Normally distributed values that require a gradient."""
        return torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True)

    def placed(self, net: nn.Module) -> nn.Module:
        """A module on the device, in the dtype of the volumes."""
        return net.to(self.device, self.dtype)

    def turns(self, *functions: Callable[[], Any]) -> Turns:
        """Measures the seconds of functions that take turns."""
        return self.clocked_turns(*(functools.partial(self.seconds, function) for function in functions))

    def clocked_turns(self, *clocks: Callable[[], float]) -> Turns:
        """Like `turns`, for functions that run something, here or in another process, and return its seconds."""
        taken: list[list[float]] = [[] for _ in clocks]
        threads = torch.get_num_threads()
        if threads not in self._best:
            self._best[threads] = min(self._work() for _ in range(WARM_UP))
        for clock in clocks:
            clock()
        work = [self._work()]
        for _ in range(self.runs):
            for clock, times in zip(clocks, taken, strict=True):
                times.append(clock())
            work.append(self._work())
        self._best[threads] = min(self._best[threads], *work)
        return Turns(taken, quartiles(work)[1] / self._best[threads])

    def seconds(self, function: Callable[[], Any]) -> float:
        """The seconds of one run."""
        self._wait()
        start = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - start

    def _work(self) -> float:
        """The seconds of the fixed piece of work."""
        return self.seconds(lambda: torch.mm(self._factor, self._factor, out=self._product))

    def peak(self, function: Callable[[], Any]) -> int:
        """The peak memory of a run in bytes, in addition to the memory before it."""
        function()  # a first call may allocate memory that stays
        gc.disable()  # memory that is freed by garbage collection would be subtracted
        try:
            return peak_on_cuda(function) if self.device == "cuda" else peak(function)
        finally:
            gc.enable()

    def time(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None, **of) -> Row:
        """A row with two times."""
        (one, two), slowdown = self.turns(ours, other)
        return timed(what, beside, one, two, slowdown=slowdown, limit=limit, **of)

    def memory(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None, **of) -> Row:
        """A row with two peaks."""
        return Row(what, beside, self.peak(ours) / MIB, self.peak(other) / MIB, "MiB", limit, **of)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_on_cuda(function: Callable[[], Any]) -> int:
    """The peak number of bytes allocated on the device while `function` runs, beyond those allocated before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before


def timed(what: str, beside: str, ours: Sequence[float], other: Sequence[float], unit: str = "s", **of) -> Row:
    """A row with the medians of two functions that took turns, and the quartiles of the ratios of single turns."""
    ratios = [one / two for one, two in zip(ours, other, strict=True)]
    medians = statistics.median(ours), statistics.median(other)
    return Row(what, beside, *medians, unit, spread=quartiles(ratios), **of)


def is_loaded(slowdown: float | None) -> bool:
    """Whether the fixed piece of work took so long that other processes must have used the machine."""
    return slowdown is not None and slowdown > LOADED


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return low, high


def saved_bytes(function: Callable[..., Tensor], *inputs: Tensor) -> int:
    """The bytes that autograd saves for backward in a forward pass, without inputs, output, parameters and buffers.

    Each storage is counted once and as a whole, even if several tensors of it are saved.
    """
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage  # keeps it alive, so that its address is not used again
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
    """A forward and a backward pass, with gradients of the inputs and the parameters."""
    wanted = [*inputs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    upstream = torch.ones_like(function(*inputs), memory_format=torch.contiguous_format)
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def sizes(shape: Sequence[int], channels: int | None = None) -> str:
    """The sizes of a volume as text."""
    extents = f"{shape[0]}³" if len(set(shape)) == 1 else " × ".join(map(str, shape))
    return extents if channels is None else f"{extents}, C = {channels}"
