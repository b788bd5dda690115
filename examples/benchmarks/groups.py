"""Attention in groups, compared with an older checkout of the library, with matrix products, and with MONAI's Swin."""

import itertools
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attn3d.attention import VolumeAttention
from examples.benchmarks.checkout import HEADS, ROOT, WIDTH, Case, checkout
from examples.benchmarks.measuring import MIB, Bench, Row, timed
from examples.benchmarks.swin import beside_swin

PRODUCTS = 7  # matrix products of queries x keys x channels: two in a forward pass, five in a backward pass
SQUARE = 1024  # rows of the square matrices whose product gives the peak speed
MOST_OVER_PEAK = 2.0  # a ratio of 2 is half of the peak speed


class Compared(NamedTuple):
    """A pattern over a cube, and the limits of its ratios to the older checkout."""

    words: str
    pattern: str
    options: dict[str, Any]
    extent: int
    most_forward: float
    most_training: float
    most_memory: float = 1.0
    dtype: str = "float32"


SHIFTED = {"size": 8, "shift": True}
COMPARED = [
    Compared("windows of 8³", "window", {"size": 8}, 32, 0.50, 0.60),
    Compared("windows of 8³, shifted", "window", SHIFTED, 32, 0.08, 0.15),
    Compared("windows of 7³", "window", {"size": 7}, 24, 0.15, 0.22),
    Compared("grid of 8³", "grid", {"size": 8}, 32, 0.55, 0.60),
    Compared("neighbourhoods of 7³", "neighborhood", {"size": 7}, 24, 0.25, 0.40, most_memory=1.2),
    Compared("windows of 8³, bfloat16", "window", {"size": 8}, 32, 0.27, 0.60, dtype="bfloat16"),
    Compared("windows of 8³, shifted, bfloat16", "window", SHIFTED, 32, 0.05, 0.20, dtype="bfloat16"),
]


def groups(bench: Bench) -> Iterator[Row]:
    """All three comparisons, for each number of threads."""
    if bench.beside is None:
        yield Row("attention in groups", "older checkout", None, None, "", note="left out without --beside")
    else:
        yield from beside_checkout(bench, bench.beside)
    for count in bench.threads:
        torch.set_num_threads(count)
        yield from beside_the_peak(bench, counted(count))
        yield from beside_swin(bench, counted(count))


def counted(threads: int) -> str:
    """A number of threads as text."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def beside_checkout(bench: Bench, older: Path) -> Iterator[Row]:
    """Time and memory of both checkouts. Each has its own process, and the two processes take turns."""
    device, name = bench.device, commit(older)
    with checkout(ROOT, device) as ours, checkout(older, device) as theirs:
        for one, in_training, count in itertools.product(COMPARED, (False, True), bench.threads):
            torch.set_num_threads(count)  # of this process too, for the fixed piece of work
            extent = bench.size(one.extent)
            case = Case(one.pattern, one.options, extent, one.dtype, in_training, count)
            group, step = f"{one.words}, {extent}³", "training" if in_training else "forward"
            what, beside = f"{group}, {step}, {counted(count)}", f"checkout {name}"
            (mine, others), slowdown = bench.clocked_turns(*(partial(ask, "seconds", case) for ask in (ours, theirs)))
            limit, measure = one.most_training if in_training else one.most_forward, f"{step}, {counted(count)}"
            yield timed(what, beside, mine, others, slowdown=slowdown, limit=limit, group=group, measure=measure)
            peaks = [ask("peak", case) / MIB for ask in (ours, theirs)]
            yield Row(what, beside, *peaks, "MiB", one.most_memory, group=group, measure=f"peak, {measure}")


def commit(root: Path) -> str:
    """The commit of a checkout, or the name of its folder if it is not a git repository."""
    asked = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or root.resolve().name


def beside_the_peak(bench: Bench, threads: str) -> Iterator[Row]:
    """Windows in training, compared with the time of their products at the speed of a large square product."""
    rows = bench.size(SQUARE)
    square, product = (torch.ones(rows, rows, device=bench.device) for _ in range(2))
    for one in COMPARED[:2]:
        extent = bench.size(one.extent)
        case = Case(one.pattern, one.options, extent, one.dtype, True, torch.get_num_threads())
        step = case.step(VolumeAttention, bench.device)
        (ours, peak), slowdown = bench.turns(step, lambda: torch.mm(square, square, out=product))
        share = PRODUCTS * HEADS * WIDTH * pairs(extent, **one.options) / rows**3
        at_peak = [seconds * share for seconds in peak]
        what, beside = f"{one.words}, {extent}³, training, {threads}", f"its products, as fast as {rows}³"
        yield timed(what, beside, ours, at_peak, slowdown=slowdown, limit=MOST_OVER_PEAK)


def pairs(extent: int, size: int, shift: bool = False) -> int:
    """The number of pairs of voxels that see each other in the windows of a cube."""
    cut = size - size // 2 if shift and extent > size else 0
    along = torch.bincount((torch.arange(extent) + cut) // size)
    return int((along**2).sum()) ** 3
