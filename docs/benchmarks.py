"""Writes docs/benchmarks.md and docs/charts.md, and draws the charts, from what `examples/benchmark.py` measured.

For each subject, docs/figures/SUBJECT.json has its figures; SUBJECT_cuda.json those of a CUDA device, if one was at
hand. The page says which commands make them. ``python docs/benchmarks.py`` writes what they say.
"""

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout is no package: from its root comes `examples`

from examples.benchmarks.charts import CHARTS
from examples.benchmarks.floor import PASSES

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
PAGE, CHARTS_PAGE = DOCS / "benchmarks.md", DOCS / "charts.md"
MISSING = "not measured"
# Of every chart: what is seen, in a few words and in a few more.
WORDS = {
    "mechanisms": (
        "What every mechanism keeps and takes, beside its plain form",
        "What is kept for backward beyond input and output, in maps of the input's size; time and memory in training "
        "beside the plain form, eager and compiled; the compiled mechanism beside the bytes that it must move.",
    ),
    "insertion": (
        "Training steps of three networks with every mechanism, beside those without",
        "A training step with the mechanism at every encoder stage; 1 is the network without. `non_local`, `mhsa` and "
        "`danet` see windows of 8³ voxels.",
    ),
    "scaling_mechanisms": (
        "Time and memory of every mechanism against the number of voxels",
        "Slope 1 is linear. `non_local`, `mhsa` and `danet` see all voxels here: their time grows with N², their "
        "memory with N.",
    ),
    "scaling_patterns": (
        "Time and memory of a non-local block in every pattern against the number of voxels",
        "The same block: as a matrix of all pairs, over all voxels without one, and in every other pattern.",
    ),
}


def measured(subject: str, device: str = "") -> dict | None:
    """What a subject's file has; None where there is none."""
    file = FIGURES / f"{subject}{device}.json"
    return json.loads(file.read_text()) if file.exists() else None


def origin(found: dict) -> str:
    """Where, with what, and by which command."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return (
        f"```bash\n{found['command']}\n```\n\n{found['machine']}, {found['threads']} threads; {versions}; "
        f"{found['dtype']}, medians of {found['runs']} runs."
    )


def flat(rows: list[dict], cuda: dict | None, subject: str) -> list[str]:
    """A line for each figure; what no CUDA device has measured is said to be so."""
    there = {} if cuda is None else {key(row): row for row in cuda[subject]}
    lines = heading(("what", "beside"), ("ours", "other", "ratio", "quartiles", "asked"), ("CUDA",))
    for row in rows:
        cells = [*compared(row), "" if row["limit"] is None else f"≤ {row['limit']:.3g}", on_cuda(there.get(key(row)))]
        lines.append(f"| {row['what']} | {row['beside']} | {' | '.join(cells)} |")
    return lines


def heading(words: tuple[str, ...], numbers: tuple[str, ...], last: tuple[str, ...] = ()) -> list[str]:
    """The first lines of a table."""
    ruler = ["---"] * len(words) + ["---:"] * len(numbers) + ["---"] * len(last)
    return [f"| {' | '.join((*words, *numbers, *last))} |", f"| {' | '.join(ruler)} |"]


def key(row: dict) -> tuple:
    """What a figure is known by."""
    return row["what"], row["beside"], row["unit"]


def compared(row: dict) -> list[str]:
    """Both figures, their ratio and its spread."""
    if row["ours"] is None:
        return [row["note"], "", "", ""]
    spread = row.get("spread")
    quartiles = "" if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}"
    return [*(figure(row[side], row["unit"]) for side in ("ours", "other")), ratio(row), quartiles]


def ratio(row: dict) -> str:
    """In bold where it misses what was asked of it; not judged where others used the machine meanwhile."""
    if row["ratio"] is None:
        return ""
    if row.get("loaded"):
        return f"{row['ratio']:.3g}, loaded"
    missed = "**" if row["limit"] is not None and row["ratio"] > row["limit"] else ""
    return f"{missed}{row['ratio']:.3g}{missed}"


def on_cuda(row: dict | None) -> str:
    """The same figure on a CUDA device."""
    if row is None:
        return MISSING
    ours, other, of, _ = compared(row)
    return f"{of}: {ours}, {other}" if of else ours


def figure(value: float, unit: str) -> str:
    """Three digits, and small units where there are few."""
    for few, smaller, factor in (("s", "ms", 1000), ("ms", "µs", 1000), ("MiB", "KiB", 1024)):
        if unit == few and 0 < value < 1:
            value, unit = factor * value, smaller
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def by_group(rows: list[dict], cuda: dict | None, subject: str) -> list[str]:
    """A line for each mechanism or pattern and a column for each ratio."""
    cells = {(row["group"], row["measure"]): row for row in rows if row["group"]}
    groups, measures = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    there = {} if cuda is None else {(row["group"], row["measure"]): row for row in cuda[subject]}
    columns = tuple(f"CUDA, {measure}" for measure in measures) if there else ("CUDA",)
    lines = heading(("",), tuple(measures), columns)
    for group in groups:
        own = [with_spread(cells[group, measure]) for measure in measures]
        others = [with_spread(there.get((group, measure))) for measure in measures] if there else [MISSING]
        name = f"`{group}`" if group.isidentifier() else group
        lines.append(f"| {name} | {' | '.join([*own, *others])} |")
    return lines


def with_spread(row: dict | None) -> str:
    """A ratio, and half of what lies between its quartiles."""
    if row is None:
        return MISSING
    return ratio(row) if row["spread"] is None else f"{ratio(row)} ± {(row['spread'][1] - row['spread'][0]) / 2:.2g}"


def folded(summary: str, lines: list[str]) -> list[str]:
    """A table that is seen when asked for."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def attention(found: dict, cuda: dict | None) -> list[str]:
    """A line for each figure."""
    return flat(found["attention"], cuda, "attention")


def mechanisms(found: dict, cuda: dict | None) -> list[str]:
    """A line for each mechanism, the peers, and all figures."""
    own = [row for row in found["mechanisms"] if row["group"]]
    others = [row for row in found["mechanisms"] if not row["group"]]
    table = [*by_group(own, cuda, "mechanisms"), "", "Other libraries, in training:", ""]
    return [*table, *flat(others, cuda, "mechanisms"), "", *folded("All figures", flat(own, cuda, "mechanisms"))]


def groups(found: dict, cuda: dict | None) -> list[str]:
    """A line for each pattern beside the older checkout, what else is beside, and all figures of the first."""
    own = [row for row in found["groups"] if row["group"]]
    others = [row for row in found["groups"] if not row["group"]]
    table = [*by_group(own, cuda, "groups"), ""] if own else []
    table += ["Beside matrix products and MONAI's Swin, in training:", "", *flat(others, cuda, "groups")]
    return [*table, "", *folded("All figures beside the older checkout", flat(own, cuda, "groups"))] if own else table


def insertion(found: dict, cuda: dict | None) -> list[str]:
    """A line for each mechanism, and all figures."""
    rows = found["insertion"]
    return [*by_group(rows, cuda, "insertion"), "", *folded("All figures", flat(rows, cuda, "insertion"))]


def scaling(found: dict, cuda: dict | None) -> list[str]:
    """A line for each curve, at its largest volume."""
    there = {} if cuda is None else {(one["kind"], one["name"]): one for one in cuda["scaling"]}
    lines = heading(("", ""), ("largest N", "time", "slope", "memory", "slope"), ("CUDA",))
    for one in found["scaling"]:
        other = there.get((one["kind"], one["name"]))
        last = MISSING if other is None else "{1}, slope {2}; {3}, slope {4}".format(*ending(other))
        lines.append(f"| {one['kind']} | {one['name']} | {' | '.join([*ending(one), last])} |")
    return lines


def ending(curve: dict) -> list[str]:
    """N, time and memory where a curve ends, each with its slope."""
    count, seconds, memory, *_ = curve["points"][-1]
    slopes = [f"{power:.2f}" for power in curve["slopes"]]
    slopes[0] += ", loaded" if curve.get("loaded") else ""
    return [f"{count:,}", figure(seconds, "s"), slopes[0], figure(memory / 2**20, "MiB"), slopes[1]]


TABLES: dict[str, Callable[[dict, dict | None], list[str]]] = {
    "mechanisms": mechanisms,
    "attention": attention,
    "groups": groups,
    "insertion": insertion,
    "scaling": scaling,
}


def table(subject: str) -> str:
    """What stands between a subject's marks."""
    found, cuda = measured(subject), measured(subject, "_cuda")
    if found is None:
        return f"`{subject}`: {MISSING} yet."
    parts = [origin(found), *([] if cuda is None else [f"CUDA: {origin(cuda)}"])]
    return "\n\n".join([*parts, "\n".join(TABLES[subject](found, cuda))])


def floor() -> str:
    """The passes that the floor counts."""
    lines = heading(("", "forward", "backward"), ("passes",))
    for name, of in PASSES.items():
        passes = f"{of.forward} + {of.backward}"
        lines.append(f"| `{name}` | {of.forward_passes} | {of.backward_passes} | {passes} |")
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """The page with the tables of the last measurements."""
    for mark in (*TABLES, "floor"):
        start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        before, rest = page.split(start)
        after = rest.split(end)[1]
        page = f"{before}{start}\n\n{floor() if mark == 'floor' else table(mark)}\n\n{end}{after}"
    return page


def charts_page() -> str:
    """Every chart of what was measured, and how."""
    parts = [
        "# Charts",
        "What [the benchmarks](benchmarks.md) measured, as pictures. `python docs/benchmarks.py` draws them and writes "
        "this\npage from the figures that lie beside them.",
    ]
    for subject, charts in CHARTS.items():
        found = measured(subject)
        parts.append(f"## {subject.capitalize()}")
        if found is None:
            parts.append(f"{MISSING.capitalize()} yet.")
            continue
        for name in charts:
            alternative, words = WORDS[name]
            parts += [textwrap.fill(words, 120), f"![{alternative}](figures/{name}.svg)"]
        parts.append(f"{origin(found)} [The figures](figures/{subject}.json).")
    parts.append(
        "## Whole volumes\n\nThe same for attention alone, with memory as estimated for volumes that do not fit:\n"
        "[attention over whole volumes](whole-volumes.md#what-it-costs).\n\n"
        "![Memory and time of attention against the number of voxels](figures/whole_volumes.svg)"
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    CHARTS_PAGE.write_text(charts_page())
    for subject, charts in CHARTS.items():
        found = measured(subject)
        for name, draw in charts.items():
            if found is not None:
                draw(found).save(FIGURES / f"{name}.svg")
