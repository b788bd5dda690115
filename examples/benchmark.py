"""What attn3d costs beside plain forms: time and memory, side by side in one run.

    python examples/benchmark.py --what attention
    python examples/benchmark.py --what attention --json attention.json
    python examples/benchmark.py --what attention --small

Every figure is compared with another of the same run, since times differ from machine to machine: the two take turns,
and medians are compared. Memory is the most that is alive at once beyond what a function is given, as the allocator
reports it, and does not depend on what else the machine does. ``--small`` runs everything at sizes of no meaning.
"""

import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import attn3d
from attn3d.attention import VolumeAttention, dot_product

MIB = 2**20
os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says nothing of its own


class Row(NamedTuple):
    """A figure, what it is compared with, and the ratio that it is to stay within, if there is one."""

    what: str
    beside: str
    ours: float
    other: float
    unit: str
    limit: float | None = None

    @property
    def ratio(self) -> float:
        """Of ours to the other."""
        return self.ours / self.other


class Bench:
    """Measures functions on a device.

    Args:
        device: "cpu" or "cuda".
        runs: of which a median is taken, after one that does not count.
        small: whether sizes are cut, to see that all of it runs.
    """

    def __init__(self, device: str, runs: int, small: bool) -> None:
        self.device = torch.device(device)
        self.runs = runs
        self.small = small

    def size(self, size: int) -> int:
        """An extent or a number of tokens, cut where the bench is small."""
        return size // 4 if self.small else size

    def random(self, *shape: int) -> Tensor:
        """Normally distributed values that require a gradient."""
        return torch.randn(shape, device=self.device, requires_grad=True)

    def seconds(self, *functions: Callable[[], Any]) -> list[float]:
        """The median of each, taken in turns."""
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
        return [statistics.median(times) for times in taken]

    def peak(self, function: Callable[[], Any]) -> int:
        """The most bytes that are alive at once, beyond those before it."""
        function()  # first calls allocate what stays
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

    def time(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None) -> Row:
        """A row of two times."""
        return Row(what, beside, *self.seconds(ours, other), "s", limit)

    def memory(self, what: str, beside: str, ours: Callable, other: Callable, limit: float | None = None) -> Row:
        """A row of two peaks."""
        return Row(what, beside, self.peak(ours) / MIB, self.peak(other) / MIB, "MiB", limit)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def inference(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
    """A forward pass."""
    return torch.no_grad()(lambda: function(*inputs))


def training(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A forward and a backward pass, by the inputs and the parameters."""
    wanted = [*inputs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    upstream = torch.ones_like(function(*inputs), memory_format=torch.contiguous_format)
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, with a score for every pair."""
    return (q @ k.mT).softmax(-1) @ v


def plain_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without softmax, with a score for every pair."""
    return (q @ k.mT / k.shape[2]) @ v


class PlainNonLocal(nn.Module):
    """The non-local block as it is usually written."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv3d(channels, channels // 2, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(channels // 2, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Adds to (B, C, *S) what its voxels say to each other."""
        q, k, v = (layer(x).flatten(2).mT for layer in (self.query, self.key, self.value))
        return x + self.out(plain_attention(q, k, v).mT.unflatten(2, x.shape[2:]))


def attention(bench: Bench) -> Iterator[Row]:
    """Attention over whole volumes."""
    yield from one_head(bench)
    yield from without_softmax(bench)
    yield from blocks(bench)
    yield from windows(bench)


def one_head(bench: Bench) -> Iterator[Row]:
    """One head of width 64, as in a non-local block, against PyTorch's function on the same contiguous tensors."""
    count = bench.size(4096)
    tokens = [bench.random(1, 1, count, 64) for _ in range(3)]
    for method, limits in (("auto", (1.1, 0.85)), ("chunked", (None, None))):

        def ours(q: Tensor, k: Tensor, v: Tensor, method: str = method) -> Tensor:
            return attn3d.attend(q, k, v, method=method)

        for step, name, limit in ((inference, "forward", limits[0]), (training, "training", limits[1])):
            pair = step(ours, *tokens), step(scaled_dot_product_attention, *tokens)
            what = f"attend, {method}, {name}, N = {count}"
            yield bench.time(what, "bare SDPA", *pair, limit)
            yield bench.memory(what, "bare SDPA", *pair)


def without_softmax(bench: Bench) -> Iterator[Row]:
    """The pairwise function theta_i . phi_j."""
    count = bench.size(8192)
    tokens = [bench.random(1, 1, count, 64) for _ in range(3)]
    for step, name in ((inference, "forward"), (training, "training")):
        pair = step(dot_product, *tokens), step(plain_dot_product, *tokens)
        what = f"dot_product, {name}, N = {count}"
        yield bench.time(what, "plain form", *pair, 1 / 10)
        yield bench.memory(what, "plain form", *pair, 1 / 50)


def blocks(bench: Bench) -> Iterator[Row]:
    """A whole non-local block in training, and one on a volume whose pairs need more than a machine has."""
    for size, least_memory, least_time in ((16, 1 / 14, 0.6), (20, 1 / 30, 0.55)):
        extent = bench.size(size)
        x = bench.random(1, 128, *[extent] * 3)
        ours, plain = (net.to(bench.device) for net in (attn3d.NonLocal(3, 128), PlainNonLocal(128)))
        pair = training(ours, x), training(plain, x)
        what = f"NonLocal, training, {extent}³, C = 128"
        yield bench.time(what, "plain block", *pair, least_time)
        yield bench.memory(what, "plain block", *pair, least_memory)
    extent = bench.size(32)
    x = bench.random(1, 32, *[extent] * 3)
    net = attn3d.NonLocal(3, 32).to(bench.device)
    plain = attn3d.estimate_memory("non_local", x.shape, method="reference") / MIB
    what = f"NonLocal, training, {extent}³, C = 32"
    yield Row(what, "plain, foretold", bench.peak(training(net, x)) / MIB, plain, "MiB", 60 / plain)


def windows(bench: Bench) -> Iterator[Row]:
    """Windows of 8³ voxels: memory beside that of their inputs and output, and time as the volume grows."""
    layer = VolumeAttention(3, 4, scope=attn3d.Window(8))
    volumes = [[bench.size(size)] * 3 for size in (24, 32, 48)]
    tokens = [[bench.random(1, 4, math.prod(shape), 16) for _ in range(3)] for shape in volumes]
    for step, name, limit in ((inference, "forward", 1.3), (training, "training", 2.0)):
        passes = [
            step(lambda q, k, v, shape=shape: layer(q, k, v, shape), *qkv)
            for shape, qkv in zip(volumes, tokens, strict=True)
        ]
        given = sum(x.nbytes for x in tokens[-1]) / MIB
        what = f"Window, {name}, {volumes[-1][0]}³, with q, k, v"
        yield Row(what, "q, k, v and out", given + bench.peak(passes[-1]) / MIB, given * 4 / 3, "MiB", limit)
        of_voxel = [
            1e6 * seconds / math.prod(shape) for seconds, shape in zip(bench.seconds(*passes), volumes, strict=True)
        ]
        for shape, microseconds in zip(volumes[1:], of_voxel[1:], strict=True):
            what = f"Window, {name}, {shape[0]}³, a voxel"
            yield Row(what, f"{volumes[0][0]}³", microseconds, of_voxel[0], "µs", 1.1)


SUBJECTS: dict[str, Callable[[Bench], Iterator[Row]]] = {"attention": attention}


def main(
    what: Annotated[list[str], typer.Option(help=f"Of {', '.join(SUBJECTS)}; may be given more than once.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Runs of which a median is taken.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, whose ratios mean nothing.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="A new file for the figures.")] = None,
) -> None:
    """Measure attn3d beside plain forms and print the ratios."""
    unknown = [name for name in what if name not in SUBJECTS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SUBJECTS)}", param_hint="--what")
    if file is not None and file.exists():
        raise typer.BadParameter(f"{file} exists; give a new file", param_hint="--json")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"{device!r} is not at hand", param_hint="--device")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bench, console = Bench(device, runs, small), Console()
    found: dict[str, Any] = {"machine": machine(device), "threads": threads, "runs": runs, "small": small}
    for name in what:
        with console.status(f"measuring {name}"):
            rows = [row._replace(limit=None) if small else row for row in SUBJECTS[name](bench)]
        console.print(table(f"{name}: {found['machine']}, {threads} threads", rows))
        found[name] = [row._asdict() | {"ratio": row.ratio} for row in rows]
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


def machine(device: str) -> str:
    """What the figures were taken on."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"


def table(title: str, rows: list[Row]) -> Table:
    """The figures, their ratios, and the limits that these are to stay within."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("what", "beside"):
        shown.add_column(heading)
    for heading in ("ours", "other", "ratio", "limit"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        figures = [f"{figure:.3g} {row.unit}" for figure in (row.ours, row.other)]
        limit = "" if row.limit is None else f"{'within' if row.ratio <= row.limit else 'beyond'} {row.limit:.2g}"
        shown.add_row(row.what, row.beside, *figures, f"{row.ratio:.3g}", limit)
    return shown


if __name__ == "__main__":
    typer.run(main)
