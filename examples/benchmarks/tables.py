"""Measured figures as tables, for the terminal and for docs/benchmarks.md.

A table is a list of lines of cells, and its first line is the heading. Rows and curves are dictionaries, as the JSON
files of `examples/benchmark.py` have them.
"""

from collections.abc import Sequence
from typing import Any


def of_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each row: both figures, their ratio, its quartiles and its limit."""
    lines = [["what", "compared with", "ours", "other", "ratio", "quartiles", "limit"]]
    for row in rows:
        if row["ours"] is None:
            cells = [row["note"], "", "", "", ""]
        else:
            figures = [figure(row[side], row["unit"]) for side in ("ours", "other")]
            quartiles = "{:.3g} to {:.3g}".format(*row["spread"]) if row["spread"] else ""
            limit = "" if row["limit"] is None else f"≤ {row['limit']:.3g}"
            cells = [*figures, ratio(row), quartiles, limit]
        lines.append([row["what"], row["beside"], *cells])
    return lines


def by_group(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each mechanism, pattern or network, and a column for each ratio with half of its spread."""
    cells = {(row["group"], row["measure"]): ratio(row, spread=True) for row in rows}
    groups, measures = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    lines = [["", *measures]]
    for group in groups:
        name = f"`{group}`" if group.isidentifier() else group
        lines.append([name, *(cells[group, measure] for measure in measures)])
    return lines


def of_curves(curves: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each curve: its time and memory at its largest volume, and their slopes."""
    lines = [["", "", "largest N", "time", "slope", "memory", "slope"]]
    for curve in curves:
        count, seconds, memory, *_ = curve["points"][-1]
        of_time, of_memory = (f"{slope:.2f}" for slope in curve["slopes"])
        of_time += ", loaded" if curve["loaded"] else ""
        at_end = [figure(seconds, "s"), of_time, figure(memory / 2**20, "MiB"), of_memory]
        lines.append([curve["kind"], curve["name"], f"{count:,}", *at_end])
    return lines


def ratio(row: dict[str, Any], spread: bool = False) -> str:
    """The ratio of a row: bold above its limit, which is not checked on a loaded machine."""
    if row["ratio"] is None:
        return ""
    text = f"{row['ratio']:.3g}"
    if row["limit"] is not None and row["ratio"] > row["limit"] and not row["loaded"]:
        text = f"**{text}**"
    if spread and row["spread"]:
        half = (row["spread"][1] - row["spread"][0]) / 2
        text += f" ± {half:.0f}" if half >= 100 else f" ± {half:.2g}"
    return f"{text}, loaded" if row["loaded"] else text


def figure(value: float, unit: str) -> str:
    """A value with three digits; values below 1 are given in a smaller unit."""
    for few, smaller, factor in (("s", "ms", 1000), ("ms", "µs", 1000), ("MiB", "KiB", 1024)):
        if unit == few and 0 < value < 1:
            value, unit = factor * value, smaller
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def measured_on(found: dict[str, Any]) -> str:
    """The machine, threads, versions and dtype of a measurement."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return f"{found['machine']}, {found['threads']} threads; {versions}; {found['dtype']}"
