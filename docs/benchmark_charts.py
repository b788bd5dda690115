"""Charts of the figures of `examples/benchmark.py`: a function for each, from the content of a JSON file."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.benchmarks.tables import measured_on

# The colours of Okabe and Ito, which colour-blind readers can distinguish, without the yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = cycler(linestyle=["-", "--", ":", "-."], marker=["o", "s", "^", "D"])
# The measures of mechanisms in their chart, and their titles.
MEASURES = {
    "time / plain": "time",
    "compiled / plain": "time, both compiled",
    "peak / plain": "peak memory",
    "saved / plain": "saved for backward",
}


def mechanisms(found: dict[str, Any]) -> Figure:
    """Time and memory of every mechanism, divided by those of its plain form."""
    rows = [row for row in found["mechanisms"] if row["group"]]
    figure, panels = chart(found, "Mechanisms in training, relative to their plain forms", len(MEASURES), sharey=True)
    for axes, (measure, words) in zip(panels, MEASURES.items(), strict=True):
        dots(axes, [row for row in rows if row["measure"] == measure], color=COLORS[0])
        axes.set_title(words)
        axes.set_xlim(left=-0.05)
    return figure


def insertion(found: dict[str, Any]) -> Figure:
    """Time and memory of a training step of every network with every mechanism, divided by those without it."""
    rows = found["insertion"]
    networks = list(dict.fromkeys(row["measure"].split(",")[0] for row in rows))
    title = "A training step with attention at every stage, relative to one without"
    figure, panels = chart(found, title, 2, sharey=True)
    for axes, part in zip(panels, ("time", "memory"), strict=True):
        for place, network in enumerate(networks):
            of_network = [row for row in rows if row["measure"] == f"{network}, {part}"]
            style = {"color": COLORS[place], "marker": "os^"[place], "label": network}
            dots(axes, of_network, below=0.25 * (place - (len(networks) - 1) / 2), **style)
        axes.set_title(part)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def growth(found: dict[str, Any], kind: str) -> Figure:
    """Time and memory of the curves of a kind against N, on logarithmic axes."""
    curves = [one for one in found["scaling"] if one["kind"] == kind]
    curves.sort(key=lambda one: -one["points"][-1][1])  # the slowest first, as at the right end of the lines
    figure, (time, memory) = chart(found, f"Every {kind} against the number of voxels N", 2)
    for axes, column, unit in ((time, 1, 1e-3), (memory, 2, 2**20)):
        axes.set_prop_cycle(LINES * cycler(color=COLORS))
        for one in curves:
            counts = [count for count, *_ in one["points"]]
            values = [point[column] / unit for point in one["points"]]
            label = "{}: {:.2f}, {:.2f}".format(one["name"], *one["slopes"]) + (", loaded" if one["loaded"] else "")
            (line,) = axes.plot(counts, values, lw=1.5, ms=4, label=label)
            if axes is time:
                quartiles = ([point[place] / unit for point in one["points"]] for place in (3, 4))
                axes.fill_between(counts, *quartiles, color=line.get_color(), alpha=0.25, lw=0)
        axes.set_xscale("log", base=8)  # whose powers are the voxels of cubes
        axes.set_yscale("log", base=10 if axes is time else 8)
        axes.xaxis.set_major_formatter(lambda count, _: f"{count ** (1 / 3):.3g}³")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.minorticks_off()
    time.set_title("time, ms")
    memory.set_title("memory, MiB")
    figure.legend(*time.get_legend_handles_labels(), loc="outside right upper", title="slope of time, of memory")
    return figure


def chart(found: dict[str, Any], title: str, columns: int, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure with axes side by side, and the machine of the measurements below."""
    figure = Figure(figsize=(10.6, 5.2), layout="constrained")
    panels = figure.subplots(1, columns, **options)
    for axes in panels:
        axes.grid(color="#eaeef2")
        axes.set_axisbelow(True)
    figure.suptitle(title)
    words = f"{measured_on(found)}; pale: between the quartiles; hollow: on a loaded machine"
    figure.supxlabel(words, fontsize=8, color="#57606a")
    return figure, panels


def dots(axes: Axes, rows: Sequence[dict[str, Any]], *, below: float = 0, **style: Any) -> None:
    """A line of the chart for each row: a dot for its ratio, hollow if loaded, and a pale bar between its quartiles."""
    heights = [place + below for place in range(len(rows))]
    bars = zip(*(row["spread"] or (row["ratio"], row["ratio"]) for row in rows), strict=True)
    axes.hlines(heights, *bars, color=style["color"], alpha=0.35, lw=3)
    style = {"marker": "o", "ms": 5, "ls": "", **style}
    axes.plot([row["ratio"] for row in rows], heights, **style)
    loaded = [(row["ratio"], height) for row, height in zip(rows, heights, strict=True) if row["loaded"]]
    if loaded:
        axes.plot(*zip(*loaded, strict=True), **{**style, "mfc": "white", "label": ""})
    axes.axvline(1, color="#57606a", lw=0.9)
    axes.set_yticks(range(len(rows)), [row["group"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first one is at the top


def save(figure: Figure, file: Path) -> None:
    """Writes a chart with text as text. The same figures give the same file."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attn3d"}):
        figure.savefig(file, metadata={"Date": None, "Creator": None})


# For each chart the subject of its figures, and the function that draws it.
CHARTS: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "mechanisms": ("mechanisms", mechanisms),
    "insertion": ("insertion", insertion),
    "scaling_mechanisms": ("scaling", partial(growth, kind="mechanism")),
    "scaling_patterns": ("scaling", partial(growth, kind="pattern")),
}
