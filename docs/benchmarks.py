"""Writes the tables of docs/benchmarks.md from what `examples/benchmark.py` measured.

python examples/benchmark.py --what attention --json docs/figures/attention.json && python docs/benchmarks.py
"""

import json
from pathlib import Path

DOCS = Path(__file__).parent
MEASURED = DOCS / "figures" / "attention.json"
PAGE = DOCS / "benchmarks.md"
START, END = "<!-- attention -->", "<!-- /attention -->"


def table(found: dict) -> str:
    """A row for each figure; what no CUDA device has measured is said to be so."""
    lines = [
        f"{found['machine']}, {found['threads']} threads, medians of {found['runs']} runs.",
        "",
        "| what | beside | ours | other | ratio | asked | CUDA |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in found["attention"]:
        limit = "" if row["limit"] is None else f"≤ {row['limit']:.3g}"
        ours, other = (figure(row[side], row["unit"]) for side in ("ours", "other"))
        missed = "**" if row["limit"] is not None and row["ratio"] > row["limit"] else ""
        ratio = f"{missed}{row['ratio']:.3g}{missed}"
        lines.append(f"| {row['what']} | {row['beside']} | {ours} | {other} | {ratio} | {limit} | not measured |")
    return "\n".join(lines)


def figure(value: float, unit: str) -> str:
    """Three digits, and seconds in milliseconds where they are few."""
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def rewritten(page: str) -> str:
    """The page with the table of the last measurement."""
    before, rest = page.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n\n{table(json.loads(MEASURED.read_text()))}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
