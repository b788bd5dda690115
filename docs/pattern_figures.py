"""Draws the figures of docs/whole-volumes.md.

``python docs/pattern_figures.py`` draws docs/figures/patterns.svg, by the library's own weights, and
docs/figures/whole_volumes.svg, from docs/figures/whole_volumes.json. ``python docs/pattern_figures.py measure`` writes
that file anew and draws: give it an idle machine and a minute.
"""

import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing.card import BLUE, FAINT, INK, LINE, ORANGE, TEAL, Card
from drawing.chart import beside, over_voxels, slope
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

import attn3d
from attn3d.attention import Pattern

FOLDER = Path(__file__).parent / "figures"
MEASURED = FOLDER / "whole_volumes.json"

# Who sees whom, on a small volume: slices, rows, columns.
VOLUME, QUERY = (4, 8, 8), (1, 3, 4)
POINT = 100 / 72  # in pixels; corners at whole points make a small file
COLUMN, ROW, THICK, APART = (POINT * np.array(step) for step in ((11, 0), (5, 4), (0, 6), (0, 44)))
COLOURS = {"none": "#f6f8fa", "seen": "#fb9f57", "mean": "#8fd0cb", "query": "#cf222e"}
SHADE = {"top": 1.0, "front": 0.9, "side": 0.8}
PANELS = {
    "Global()": (attn3d.Global(), "all"),
    "Window((2, 4, 4))": (attn3d.Window((2, 4, 4)), "its window"),
    "Window((2, 4, 4), shift=True)": (attn3d.Window((2, 4, 4), shift=True), "moved by half"),
    "Grid((2, 4, 4))": (attn3d.Grid((2, 4, 4)), "a sparse grid"),
    "Axial()": (attn3d.Axial(), "lines through it"),
    "Neighborhood((3, 5, 5))": (attn3d.Neighborhood((3, 5, 5)), "those around it"),
    "Neighborhood(3, (1, 2, 2))": (attn3d.Neighborhood(3, (1, 2, 2)), "every second"),
    "PooledKeys((1, 2, 2))": (attn3d.PooledKeys((1, 2, 2)), "one of each cell"),
}

# What it costs. Every extent is a multiple of 8, so that no window is padded.
WINDOW, SHIFTED = ("window", {"size": 8}), ("window", {"size": 8, "shift": True})
ROWS = {  # pattern, backend, colour, line
    "global, math": ("global", "math", LINE, "--"),
    "global, sdpa": ("global", "sdpa", "#8c959f", "-"),
    "global, chunked": ("global", "chunked", INK, "-"),
    "window 8": (WINDOW, "auto", ORANGE, "-"),
    "the same, shifted": (SHIFTED, "auto", "#d4a72c", "-"),
    "grid 8": (("grid", {"size": 8}), "auto", "#8250df", "-"),
    "axial": ("axial", "auto", BLUE, "-"),
    "neighborhood 7": (("neighborhood", {"size": 7}), "auto", "#bf3989", "-"),
    "pooled_keys 8": (("pooled_keys", {"stride": 8}), "auto", TEAL, "-"),
}
CHANNELS, THREADS = 64, 2
PLANNED = [(size,) * 3 for size in (8, 16, 24, 32, 48, 64, 96)]
RUN = [(8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 32), (24, 24, 24)]
LARGEST_REFERENCE = 16**3  # that is run


def patterns() -> Card:
    """Each pattern on a small volume with thick slices."""
    note = "{} thick slices × {} rows × {} columns  ·  in colour: weights above 0".format(*VOLUME)
    card = Card(1060, 675, "Patterns: what the red voxel sees", note)
    for place, (name, (pattern, words)) in enumerate(PANELS.items()):
        x, top = POINT * (18 + 187 * (place % 4)), POINT * (434 - 224 * (place // 4))
        row = weights(pattern, torch.tensor([np.ravel_multi_index(QUERY, VOLUME)]))[0]
        count, of = int((row > 0).sum()), "voxels" if row.shape == VOLUME else "means"
        card.text(x, top + 12, name, size=10.5, ha="left")
        card.text(x, top - 6, f"{words}: {count} {of}", size=9.5, ha="left", color=FAINT)
        stack(card, np.array([x, top - 53 * POINT]), pattern, row)
    return card


def weights(pattern: Pattern, queries: torch.Tensor) -> torch.Tensor:
    """The attention of the chosen voxels, (Q, *S of the keys), by the library."""
    torch.manual_seed(0)
    attention = attn3d.MultiHeadSelfAttention(3, 4, num_heads=1, pattern=pattern)
    with torch.no_grad():
        return attention.attention_weights(torch.randn(1, 4, *VOLUME), queries)["query"][0, 0]


def stack(card: Card, corner: np.ndarray, pattern: Pattern, row: torch.Tensor) -> None:
    """The slices of the volume from the top down, in colour what the marked voxel sees."""
    cell = [whole // size for whole, size in zip(VOLUME, row.shape, strict=True)]  # of pooled keys, else a voxel
    kinds = np.where((row > 0).numpy(), "seen" if row.shape == VOLUME else "mean", "none").astype("U5")
    for axis, size in enumerate(cell):
        kinds = kinds.repeat(size, axis)
    kinds[QUERY] = "query"

    def at(z: float, y: float, x: float, low: float = 0) -> np.ndarray:
        return corner - z * APART + x * COLUMN + (VOLUME[1] - y) * ROW - low * THICK

    slices, rows, columns = VOLUME
    faces: dict[tuple[str, str], list] = {}
    lines, borders, edges = [], [], []
    for z in range(slices):
        for alike, back, near in runs([tuple(row) for row in kinds[z]]):
            for kind, first, last in runs(alike):
                top = [at(z, back, first), at(z, back, last), at(z, near, last), at(z, near, first)]
                faces.setdefault((kind, "top"), []).append(top)
        for kind, first, last in runs(kinds[z, -1]):
            front = [at(z, rows, first), at(z, rows, last), at(z, rows, last, 1), at(z, rows, first, 1)]
            faces.setdefault((kind, "front"), []).append(front)
        for kind, first, last in runs(kinds[z, :, -1]):
            side = [at(z, first, columns), at(z, last, columns), at(z, last, columns, 1), at(z, first, columns, 1)]
            faces.setdefault((kind, "side"), []).append(side)
        cuts = cut_between(pattern, cell, z)
        for y in range(1, rows):
            (borders if y in cuts[0] else lines).append([at(z, y, 0), at(z, y, columns), at(z, y, columns, 1)])
        for x in range(1, columns):
            (borders if x in cuts[1] else lines).append([at(z, 0, x), at(z, rows, x), at(z, rows, x, 1)])
        around = [at(z, 0, 0), at(z, 0, columns), at(z, 0, columns, 1), at(z, rows, columns, 1), at(z, rows, 0, 1)]
        edges += [[*around, at(z, rows, 0), at(z, 0, 0)]]
        edges += [[at(z, rows, 0), at(z, rows, columns), at(z, 0, columns)], [at(z, rows, columns), around[3]]]
    for (kind, face), shapes in faces.items():
        shade = np.array(to_rgb(COLOURS[kind])) * SHADE[face]
        _draw(card, shapes, closed=True, fc=shade, ec="none", zorder=1)
    _draw(card, lines, fc="none", ec="#8c959f", lw=0.4, zorder=2)
    _draw(card, edges, fc="none", ec=INK, lw=0.7, zorder=4)
    if borders:
        _draw(card, borders, fc="none", ec=INK, lw=1.2, zorder=3)


def runs(line: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """What is found along a line, where it begins and where it ends."""
    ends = [0, *(place for place in range(1, len(line)) if line[place] != line[place - 1]), len(line)]
    return [(line[first], first, last) for first, last in itertools.pairwise(ends)]


def cut_between(pattern: Pattern, cell: list[int], z: int) -> tuple[set[int], set[int]]:
    """Before which rows and columns of a slice a window or a pooled cell begins."""
    if cell != [1, 1, 1]:
        return set(range(0, VOLUME[1], cell[1])), set(range(0, VOLUME[2], cell[2]))
    if not isinstance(pattern, attn3d.Window):
        return set(), set()
    tokens = torch.arange(math.prod(VOLUME)).view(VOLUME)
    down, across = ((weights(pattern, line) > 0).flatten(1) for line in (tokens[z, :, 0], tokens[z, 0]))
    return tuple({i for i in range(1, len(seen)) if (seen[i] != seen[i - 1]).any()} for seen in (down, across))


def _draw(card: Card, shapes: list, *, closed: bool = False, **style) -> None:
    """Many lines or polygons as one path."""
    points, codes = [], []
    for shape in shapes:
        points += [*shape, shape[0]] if closed else shape
        codes += [Outline.MOVETO, *[Outline.LINETO] * (len(shape) - 1), *[Outline.CLOSEPOLY] * closed]
    card.axes.add_patch(PathPatch(Outline(points, codes), clip_on=False, **style))


def measure() -> dict:
    """Memory in training as it is estimated, and the seconds of forward and backward on this machine."""
    torch.set_num_threads(THREADS)
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    version = torch.__version__.partition("+")[0]
    found = {"machine": cpu, "threads": THREADS, "torch": version, "channels": CHANNELS, "memory": {}, "seconds": {}}
    for name, (pattern, backend, _, _) in ROWS.items():
        net = attn3d.NonLocal(3, CHANNELS, pattern=pattern, backend=backend)
        run = [shape for shape in RUN if backend != "math" or math.prod(shape) <= LARGEST_REFERENCE]
        memory = {math.prod(shape): attn3d.estimate_memory(net, (1, CHANNELS, *shape)) for shape in PLANNED}
        found["memory"][name] = list(memory.items())
        found["seconds"][name] = [(math.prod(shape), round(seconds(net, shape), 5)) for shape in run]
    return found


def seconds(net: torch.nn.Module, shape: tuple[int, ...], *, runs: int = 2) -> float:
    """The least that forward and backward took, after one run that does not count."""
    x = torch.randn(1, CHANNELS, *shape, requires_grad=True)
    taken = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        net(x).sum().backward()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def whole_volumes() -> Card:
    """Memory and time against the number of voxels."""
    found = json.loads(MEASURED.read_text())
    card = Card(
        1060, 455, "Memory and time against the number of voxels N", "logarithmic; slope: the power of N at the end"
    )
    memory = over_voxels(
        card, 80, "Memory in training", (8, 16, 32, 64, 96), {2**20: "1 MiB", 2**30: "1 GiB", 2**40: "1 TiB"}
    )
    time_axes = over_voxels(
        card, 430, "Time in training", (8, 16, 24), {0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s"}
    )
    for x, words in ((976, "slope of\nmemory"), (1024, "\ntime")):
        card.text(x, 378, words, size=9, color=FAINT)
    for place, (name, (*_, color, line)) in enumerate(ROWS.items()):
        y = 340 - 31 * place
        card.axes.plot([752, 778], [y, y], color=color, ls=line, lw=1.8)
        card.text(786, y, name, size=9.5, ha="left")
        for x, axes, part in ((976, memory, "memory"), (1024, time_axes, "seconds")):
            points = np.array(found[part][name], dtype=float)
            axes.plot(*points.T, color=color, ls=line, lw=1.8, marker="o", ms=2.8)
            card.text(x, y, f"{slope(points):.2f}", size=9.5)
    last = {name: points[-1][1] for name, points in found["memory"].items()}
    full, *others = last.values()
    memory.set_ylim(top=10 * full)
    beside(memory, 96**3, full, f"{full / 2**40:.1f} TiB")
    beside(memory, 96**3, max(others), f"{min(others) / 2**30:.1f} to {max(others) / 2**30:.1f} GiB")
    words = (
        "{channels} channels, one volume, fp32. Memory: estimated. Time: {machine}, {threads} threads, torch {torch}."
    )
    card.text(24, 24, words.format(**found), size=9, color=FAINT, ha="left")
    return card


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    if sys.argv[1:] == ["measure"]:
        MEASURED.write_text(json.dumps(measure(), indent=1) + "\n")
    patterns().save(FOLDER / "patterns.svg")
    whole_volumes().save(FOLDER / "whole_volumes.svg")
