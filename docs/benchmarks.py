"""Writes the tables of docs/benchmarks.md and draws the charts of docs/charts.md: ``python docs/benchmarks.py``.

The figures come from `examples/benchmark.py`. docs/figures/SUBJECT.json has the figures of a subject, and
SUBJECT_cuda.json those of a CUDA device, if there are any. docs/benchmarks.md lists the commands that write them.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to import `docs`, `examples` and `tests`

from docs.benchmark_charts import CHARTS, save
from docs.tables import between_marks, markdown
from examples.benchmarks.tables import by_group, measured_on, of_curves, of_rows
from tests.mechanisms.cases import CASES

DOCS = Path(__file__).parent
PAGE, FIGURES = DOCS / "benchmarks.md", DOCS / "figures"
SUBJECTS = ("mechanisms", "attention", "groups", "insertion", "scaling")


def measured(subject: str, device: str = "") -> dict[str, Any] | None:
    """The content of a subject's file, or None if there is no such file."""
    file = FIGURES / f"{subject}{device}.json"
    return json.loads(file.read_text()) if file.exists() else None


def section(subject: str) -> str:
    """The text between the marks of a subject: its tables, and those of a CUDA device if it was measured."""
    parts = []
    if found := measured(subject):
        parts += [origin(found, f"{subject}.json"), *tables(found[subject])]
    if found := measured(subject, "_cuda"):
        parts += [f"### {found['machine']}: {subject}", origin(found, f"{subject}_cuda.json"), *tables(found[subject])]
    return "\n\n".join(parts)


def origin(found: dict[str, Any], file: str) -> str:
    """The command of a measurement, its machine and versions, and a link to its file."""
    return (
        f"```bash\n{found['command']}\n```\n\n"
        f"{measured_on(found)}, medians of {found['runs']} runs. [All figures](figures/{file})."
    )


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table of curves, or a table by group and one of the rows without a group."""
    if "points" in rows[0]:
        return [table(of_curves(rows), 2)]
    grouped, others = ([row for row in rows if bool(row["group"]) == has] for has in (True, False))
    parts = [table(by_group(grouped), 1)] if grouped else []
    parts += ["Other comparisons, in training:"] if grouped and others else []
    return [*parts, table(of_rows(others), 2)] if others else parts


def table(lines: list[list[str]], words: int) -> str:
    """A table whose columns have numbers, but for the first ones."""
    return markdown(lines, "l" * words + "r" * (len(lines[0]) - words)).strip()


def floor() -> str:
    """The number of passes of each mechanism."""
    lines = [["", "forward", "backward", "passes"]]
    for name, case in CASES.items():
        of = case.floor
        lines.append([f"`{name}`", of.forward_passes, of.backward_passes, f"{of.forward} + {of.backward}"])
    return markdown(lines, "lllr")


def rewritten(page: str) -> str:
    """The page with the tables of the last measurements."""
    for subject in SUBJECTS:
        page = between_marks(page, subject, section(subject))
    return between_marks(page, "floor", floor())


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    for name, (subject, draw) in CHARTS.items():
        if found := measured(subject):
            save(draw(found), FIGURES / f"{name}.svg")
