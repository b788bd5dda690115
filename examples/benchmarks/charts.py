"""Charts of the measurements, drawn from the content of a JSON file."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from examples.benchmarks.drawing import BLUE, FAINT, INK, ORANGE, TEAL, Card, in_lines, over_voxels, slope

COLOURS = (INK, "#8c959f", ORANGE, "#d4a72c", "#8250df", BLUE, "#bf3989", TEAL, "#1a7f37", "#cf222e")
SECONDS = {1e-6: "1 µs", 1e-5: "10 µs", 1e-4: "0.1 ms", 1e-3: "1 ms", 0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s"}
BYTES = {
    2**10: "1 KiB", 2**13: "8 KiB", 2**16: "64 KiB", 2**19: "512 KiB", 2**22: "4 MiB", 2**25: "32 MiB",
    2**28: "256 MiB", 2**31: "2 GiB", 2**34: "16 GiB",
}  # fmt: skip
# The title and the ticks of each measure of a mechanism.
PANELS: dict[str, tuple[str, dict[float, str]]] = {
    "kept / map": ("kept, in maps", {1e-5: "", 1e-4: "", 1e-2: "0.01", 1: "1", 100: ""}),
    "time / plain": ("time / plain", {0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5", 2: ""}),
    "peak / plain": ("peak / plain", {0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5", 2: ""}),
    "compiled / plain": ("both compiled", {0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5", 2: ""}),
    "compiled / floor": ("compiled / floor", {1: "1", 10: "10", 100: "100", 1000: "", 10000: ""}),
}
LIMIT = "#cf222e"


def growth(found: dict[str, Any], kind: str, title: str) -> Card:
    """Time and memory of the curves of a kind against N."""
    curves = [one for one in found["scaling"] if one["kind"] == kind]
    points = {one["name"]: np.array(one["points"], dtype=float) for one in curves}
    points = dict(sorted(points.items(), key=lambda named: -named[1][-1, 1]))  # the slowest first
    every = np.concatenate(list(points.values()))
    counts = sorted(set(every[:, 0]))
    cubes = [round(count ** (1 / 3)) for count in counts]
    sizes = tuple(size for size, count in zip(cubes, counts, strict=True) if size**3 == count)
    sizes = sizes if len(sizes) > 1 else tuple(round(count ** (1 / 3), 1) for count in (counts[0], counts[-1]))
    card = Card(1060, max(455, 160 + 28 * len(points)), title, "logarithmic; slope: the exponent of N at the end")
    time_axes = over_voxels(card, 80, "Time in training", sizes, within(SECONDS, every[:, 1]))
    memory = over_voxels(card, 430, "Memory in training", sizes, within(BYTES, every[:, 2]))
    for x, words in ((958, "slope of\ntime"), (1010, "\nmemory")):
        card.text(x, card.height - 77, words, size=9, color=FAINT)
    for axes in (time_axes, memory):
        axes.set_xlim(0.7 * counts[0], 1.4 * counts[-1])
    for place, (name, line) in enumerate(points.items()):
        y, color = card.height - 111 - 28 * place, COLOURS[place % len(COLOURS)]
        style = ("-", "--", ":")[place // len(COLOURS) % 3]
        card.axes.plot([752, 778], [y, y], color=color, ls=style, lw=1.8)
        card.text(786, y, name, size=9.5, ha="left")
        for x, axes, column in ((958, time_axes, 1), (1010, memory, 2)):
            axes.plot(*line[:, [0, column]].T, color=color, ls=style, lw=1.8, marker="o", ms=2.8)
            if column == 1:
                axes.vlines(line[:, 0], line[:, 3], line[:, 4], color=color, lw=3, alpha=0.35)
            card.text(x, y, f"{slope(line[:, [0, column]]):.2f}", size=9.5)
    card.text(24, 24, f"{measured_on(found)}; pale: between the quartiles", size=9, color=FAINT, ha="left")
    return card


def within(ticks: dict[float, str], values: np.ndarray) -> dict[float, str]:
    """The ticks from the last one below all values to the first one above them."""
    low, high = values.min(), values.max()
    kept = [tick for tick in ticks if low / 32 < tick < high * 32]
    below, above = [tick for tick in kept if tick <= low], [tick for tick in kept if tick >= high]
    ends = max(below, default=min(kept)), min(above, default=max(kept))
    return {tick: words for tick, words in ticks.items() if ends[0] <= tick <= ends[1]}


def ratios(found: dict[str, Any]) -> Card:
    """Saved memory, time and peak memory of every mechanism, one line each."""
    rows = {(row["group"], row["measure"]): row for row in found["mechanisms"] if row["group"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    card = Card(
        1094, 132 + 30 * len(names), "Mechanisms compared with their plain forms", "lower is better; red: limit"
    )
    for x, (measure, (title, ticks)) in zip(range(130, 1094, 192), PANELS.items(), strict=False):
        log = min(ticks) > 0
        axes = in_lines(card, x, 126, title, len(names), ticks, log=log)
        axes.axvline(1, color=FAINT, lw=0.9)
        for place, name in enumerate(names):
            row = rows[name, measure]
            shown = np.clip(row["ratio"], min(ticks) * 1.05 if log else 0, max(ticks) * 0.97)
            if row["limit"] is not None:
                axes.plot([row["limit"]] * 2, [place - 0.35, place + 0.35], color=LIMIT, lw=1.6)
            if row["spread"] is not None:
                axes.plot(np.clip(row["spread"], *axes.get_xlim()), [place, place], color=BLUE, lw=3, alpha=0.35)
            axes.plot(shown, place, "o", color=BLUE, ms=5)
            y = 64 + 30 * (len(names) - place - 0.5)
            card.text(x + 132, y, number(row["ratio"]), size=9, ha="left")
            if measure == "kept / map":
                card.text(118, y, name, size=10, ha="right")
    card.text(24, 24, f"{measured_on(found)}; pale: between the quartiles", size=9, color=FAINT, ha="left")
    return card


def overheads(found: dict[str, Any]) -> Card:
    """Time and memory of a training step of every network with every mechanism, divided by those without it."""
    rows = found["insertion"]
    names = list(dict.fromkeys(row["group"] for row in rows))
    networks = list(dict.fromkeys(row["measure"].split(",")[0] for row in rows))
    card = Card(1060, 132 + 30 * len(names), "A training step with attention at every stage", "1: without attention")
    highest = {part: max(row["ratio"] for row in rows if row["measure"].endswith(part)) for part in ("time", "memory")}
    for x, (part, most) in zip((130, 640), highest.items(), strict=True):
        ticks = spaced(most)
        axes = in_lines(card, x, 385, f"{part}, multiple of that without", len(names), ticks, log=False)
        for row in rows:
            network, of = row["measure"].split(", ")
            if of == part:
                place, which = names.index(row["group"]), networks.index(network)
                color = (BLUE, ORANGE, TEAL)[which % 3]
                y = place + 0.22 * (which - (len(networks) - 1) / 2)
                if row["spread"] is not None:
                    axes.plot(np.clip(row["spread"], *axes.get_xlim()), [y, y], color=color, lw=3, alpha=0.35)
                axes.plot(row["ratio"], y, "o", color=color, ms=4.5)
    for place, name in enumerate(names):
        for x in (118, 628):
            card.text(x, 64 + 30 * (len(names) - place - 0.5), name, size=10, ha="right")
    for place, network in enumerate(networks):
        card.axes.plot(700 + 110 * place, 24, "o", color=(BLUE, ORANGE, TEAL)[place % 3], ms=5)
        card.text(710 + 110 * place, 24, network, size=9.5, ha="left")
    card.text(24, 24, f"{measured_on(found)}; pale: between the quartiles", size=9, color=FAINT, ha="left")
    return card


def measured_on(found: dict[str, Any]) -> str:
    """The machine, threads, version and dtype of a measurement."""
    return f"{found['machine']}, {found['threads']} threads, torch {found['versions']['torch']}, {found['dtype']}"


def spaced(most: float) -> dict[float, str]:
    """Ticks from just below 1 to just above ``most``, in about five steps of 1, 2 or 5 times a power of ten."""
    rough = max(most - 0.9, 0.2) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(0.95 / step), math.ceil(1.02 * most / step)
    return {round(place * step, 6): f"{place * step:g}" for place in range(first, last + 1)}


def number(value: float) -> str:
    """A number with two or three digits."""
    if value < 1e-3:
        return "< 0.001"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


CHARTS: dict[str, dict[str, Callable[[dict[str, Any]], Card]]] = {
    "mechanisms": {"mechanisms": ratios},
    "insertion": {"insertion": overheads},
    "scaling": {
        "scaling_mechanisms": lambda found: growth(found, "mechanism", "Mechanisms against the number of voxels N"),
        "scaling_patterns": lambda found: growth(
            found, "pattern", "Patterns of attention against the number of voxels N"
        ),
    },
}
