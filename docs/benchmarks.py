"""Writes the tables of docs/benchmarks.md and draws the charts of docs/charts.md: ``python docs/benchmarks.py``.

The figures come from `examples/benchmark.py`. docs/figures/SUBJECT.json has the figures of a subject, and
SUBJECT_cuda.json those of a CUDA device, if there are any. docs/benchmarks.md lists the commands that write them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # to import `docs` and `examples`

from docs.tables import between_marks, markdown
from examples.benchmarks.charts import CHARTS
from examples.benchmarks.floor import PASSES

DOCS = Path(__file__).parent
PAGE, FIGURES = DOCS / "benchmarks.md", DOCS / "figures"
MISSING = "not measured"


def measured(subject: str, device: str = "") -> dict | None:
    """The content of a subject's file, or None if there is no such file."""
    file = FIGURES / f"{subject}{device}.json"
    return json.loads(file.read_text()) if file.exists() else None


def origin(found: dict) -> str:
    """The command, the machine and the versions of a measurement."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return (
        f"```bash\n{found['command']}\n```\n\n{found['machine']}, {found['threads']} threads; {versions}; "
        f"{found['dtype']}, medians of {found['runs']} runs."
    )


def figure(value: float, unit: str) -> str:
    """A value with three digits; values below 1 are given in a smaller unit."""
    for few, smaller, factor in (("s", "ms", 1000), ("ms", "µs", 1000), ("MiB", "KiB", 1024)):
        if unit == few and 0 < value < 1:
            value, unit = factor * value, smaller
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def ratio(row: dict) -> str:
    """The ratio of a row: bold if it is above its limit, and marked if the machine was loaded."""
    if row["ratio"] is None:
        return ""
    if row.get("loaded"):
        return f"{row['ratio']:.3g}, loaded"
    missed = "**" if row["limit"] is not None and row["ratio"] > row["limit"] else ""
    return f"{missed}{row['ratio']:.3g}{missed}"


def compared(row: dict) -> list[str]:
    """Both values of a row, their ratio and its quartiles."""
    if row["ours"] is None:
        return [row["note"], "", "", ""]
    low, high = row.get("spread") or (None, None)
    quartiles = "" if low is None else f"{low:.3g} to {high:.3g}"
    return [*(figure(row[side], row["unit"]) for side in ("ours", "other")), ratio(row), quartiles]


def on_cuda(row: dict | None) -> str:
    """The value of a row on a CUDA device."""
    if row is None:
        return MISSING
    ours, other, of, _ = compared(row)
    return f"{of}: {ours}, {other}" if of else ours


def with_spread(row: dict | None) -> str:
    """A ratio, and half of the distance between its quartiles."""
    if row is None:
        return MISSING
    return ratio(row) if row["spread"] is None else f"{ratio(row)} ± {(row['spread'][1] - row['spread'][0]) / 2:.2g}"


def flat(rows: list[dict], cuda: list[dict]) -> str:
    """A line for each row, with the value on a CUDA device or a note that it was not measured."""
    names = ("what", "beside", "unit")
    there = {tuple(row[name] for name in names): row for row in cuda}
    lines = [["what", "compared with", "ours", "other", "ratio", "quartiles", "limit", "CUDA"]]
    for row in rows:
        asked = "" if row["limit"] is None else f"≤ {row['limit']:.3g}"
        other = on_cuda(there.get(tuple(row[name] for name in names)))
        lines.append([row["what"], row["beside"], *compared(row), asked, other])
    return markdown(lines, "llrrrrrl")


def by_group(rows: list[dict], cuda: list[dict]) -> str:
    """A line for each mechanism or pattern and a column for each ratio."""
    cells, there = ({(row["group"], row["measure"]): row for row in some} for some in (rows, cuda))
    groups, measures = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    lines = [["", *measures, *([f"CUDA, {measure}" for measure in measures] if there else ["CUDA"])]]
    for group in groups:
        own = [with_spread(cells[group, measure]) for measure in measures]
        others = [with_spread(there.get((group, measure))) for measure in measures] if there else [MISSING]
        lines.append([f"`{group}`" if group.isidentifier() else group, *own, *others])
    return markdown(lines, "l" + "r" * len(measures) + "l" * (len(lines[0]) - 1 - len(measures)))


def scaling(curves: list[dict], cuda: list[dict]) -> str:
    """A line for each curve, at its largest volume."""
    there = {(one["kind"], one["name"]): one for one in cuda}
    lines = [["", "", "largest N", "time", "slope", "memory", "slope", "CUDA"]]
    for one in curves:
        other = there.get((one["kind"], one["name"]))
        last = MISSING if other is None else "{1}, slope {2}; {3}, slope {4}".format(*ending(other))
        lines.append([one["kind"], one["name"], *ending(one), last])
    return markdown(lines, "llrrrrrl")


def ending(curve: dict) -> list[str]:
    """The largest N of a curve, and its time and memory there, each with its slope."""
    count, seconds, memory, *_ = curve["points"][-1]
    slopes = [f"{power:.2f}" for power in curve["slopes"]]
    slopes[0] += ", loaded" if curve.get("loaded") else ""
    return [f"{count:,}", figure(seconds, "s"), slopes[0], figure(memory / 2**20, "MiB"), slopes[1]]


def grouped(others: str, details: str) -> Callable[[list[dict], list[dict]], str]:
    """A table by group, a table of rows without a group, and a folded table of all figures."""

    def parts(rows: list[dict], cuda: list[dict]) -> str:
        own, rest = ([row for row in rows if bool(row["group"]) == of] for of in (True, False))
        text = [by_group(own, cuda)] if own else []
        text += [f"{others}\n", flat(rest, cuda)] if others else []
        if own:
            text.append(f"<details>\n<summary>{details}</summary>\n\n{flat(own, cuda)}\n</details>\n")
        return "\n".join(text)

    return parts


TABLES: dict[str, Callable[[list[dict], list[dict]], str]] = {
    "mechanisms": grouped("Other libraries, in training:", "All figures"),
    "attention": flat,
    "groups": grouped("Matrix products and MONAI's Swin, in training:", "All figures of the older checkout"),
    "insertion": grouped("", "All figures"),
    "scaling": scaling,
}


def table(subject: str) -> str:
    """The text between the marks of a subject."""
    found, cuda = measured(subject), measured(subject, "_cuda")
    if found is None:
        return f"`{subject}`: {MISSING} yet."
    parts = [origin(found), *([] if cuda is None else [f"CUDA: {origin(cuda)}"])]
    return "\n\n".join([*parts, TABLES[subject](found[subject], [] if cuda is None else cuda[subject])])


def floor() -> str:
    """The number of passes of each mechanism."""
    rows = [[f"`{name}`", of.forward_passes, of.backward_passes, f"{of.forward} + {of.backward}"]
            for name, of in PASSES.items()]  # fmt: skip
    return markdown([["", "forward", "backward", "passes"], *rows], "lllr")


def rewritten(page: str) -> str:
    """The page with the tables of the last measurements."""
    for subject in TABLES:
        page = between_marks(page, subject, table(subject))
    return between_marks(page, "floor", floor())


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    for subject, charts in CHARTS.items():
        found = measured(subject)
        for name, draw in charts.items():
            if found is not None:
                draw(found).save(FIGURES / f"{name}.svg")
