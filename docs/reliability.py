"""Writes docs/reliability.md from what was counted and measured: ``python docs/reliability.py``.

The figures are of five files in docs/figures: the scorecard of the run that every commit gets and of the nightly one,
which ``python -m pytest --scorecard=FILE`` writes, what became of kills, full disks and odd inputs, what became of the
mutants, and which branches the tests reach.
"""

import importlib.util
import json
import sys
from pathlib import Path

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
PAGE = DOCS / "reliability.md"
SCORECARD = DOCS.parent / "tests" / "scorecard.py"
RUNS = {"per commit": "scorecard.json", "nightly": "scorecard_nightly.json"}

HEAD = """# Reliability

Written by `python docs/reliability.py` from runs of the tests: nothing here is counted by hand. A case is one input,
view, copy, capture or file that was checked, and counts under one condition. The configurations are the forms, modes
and published differences of the mechanisms, and the patterns of attention, each in 1-D, 2-D and 3-D.

## Conditions
"""


FAULTS = """## Kills, full disks and odd inputs

A command is killed (SIGKILL) before a change of a name or the opening of a file, at points spread from the first to the
last; or its disk takes of each file one byte less than one of them needs. Then every file that is there must be whole,
and a person goes on: the result must be that of a command without faults, weights and labels bit for bit, with nothing
left over. A full disk and an odd input must be refused in lines that name a file or an argument; an odd input may also
have a right answer, and counts as recovered.
"""


def measured(name: str) -> dict:
    """What a file of docs/figures holds.

    Raises:
        FileNotFoundError: saying what writes it.
    """
    path = FIGURES / name
    if not path.exists():
        how = {
            "scorecard.json": "python -m pytest --scorecard=docs/figures/scorecard.json",
            "scorecard_nightly.json": "python -m pytest -m nightly --scorecard=docs/figures/scorecard_nightly.json",
            "faults.json": "python -m tests.faults --json docs/figures/faults.json",
            "mutation.json": "mutation testing",
            "coverage.json": "a run under branch coverage",
        }[name]
        raise FileNotFoundError(f"docs/figures/{name} is missing; what writes it: {how}")
    return json.loads(path.read_text())


def conditions() -> dict:
    """Those of the scorecard, from the file that counts them."""
    spec = importlib.util.spec_from_file_location("scorecard", SCORECARD)
    module = sys.modules["scorecard"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONDITIONS


def table(rows: list[list[str]], left: int) -> str:
    """In Markdown, all columns but so many to the right."""
    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def scorecard() -> str:
    """A row for each condition, the two runs beside each other, and what was skipped with its reason."""
    runs = {run: measured(name) for run, name in RUNS.items()}
    rows = [
        ["condition", "gate", "asked", *(f"{run}: {what}" for run in runs for what in ("run", "passed", "skipped"))]
    ]
    totals = dict.fromkeys(rows[0][3:], 0)
    skipped = []
    for name, condition in conditions().items():
        row = [condition.says, condition.gate, f"{condition.asked:,}"]
        for run, found in runs.items():
            cases = found["cases"].get(name, {"passed": 0, "failed": 0, "skipped": 0})
            counts = (cases["passed"] + cases["failed"], cases["passed"], cases["skipped"])
            for what, count in zip(("run", "passed", "skipped"), counts, strict=True):
                totals[f"{run}: {what}"] += count
                row.append(f"{count:,}")
            skipped += [f"- {run}, {count}: {reason}\n" for reason, count in cases.get("reasons", {}).items()]
        rows.append(row)
    rows.append(["all", "", "", *(f"{count:,}" for count in totals.values())])
    heads = [
        f"- {run}: `{found['command']}`, {found['date']}, {found['seconds'] / 60:.1f} minutes on {found['processes']} "
        f"processes. Of the tests, those without a condition here included, {found['items']['passed']:,} passed, "
        f"{found['items']['failed']:,} failed, {found['items']['skipped']:,} were skipped. "
        + ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        + ".\n"
        for run, found in runs.items()
    ]
    reasons = f"\nSkipped:\n\n{''.join(skipped)}" if skipped else ""
    return f"{''.join(heads)}\n{table(rows, 2)}{reasons}"


def faults() -> str:
    """A row for each fault, and a line for each that went wrong."""
    found = measured("faults.json")
    counts = ("tried", "recovered", "refused", "wrong")
    rows = [["fault", *counts]] + [[row["what"], *(f"{row[count]:,}" for count in counts)] for row in found["rows"]]
    rows.append(["all", *(f"{sum(row[count] for row in found['rows']):,}" for count in counts)])
    wrong = [f"- {row['what']}, {problem}\n" for row in found["rows"] for problem in row["problems"]]
    return f"`{found['command']}`, {found['date']}.\n\n{table(rows, 1)}" + (
        "\nWrong:\n\n" + "".join(wrong) if wrong else ""
    )


def mutation() -> str:
    """Of every file how many mutants the tests killed, and who survived."""
    found = measured("mutation.json")
    rows = [["file", "mutants", "killed", "share"]]
    for path, counts in sorted(found["files"].items()):
        rows.append([f"`{path}`", f"{counts['mutants']:,}", f"{counts['killed']:,}", share(counts)])
    total = {key: sum(counts[key] for counts in found["files"].values()) for key in ("mutants", "killed")}
    rows.append(["all", f"{total['mutants']:,}", f"{total['killed']:,}", share(total)])
    low, high = found["interval_percent"]
    drawn = f"{found['sampled']:,} of {found['total_mutants']:,} mutants, drawn at random"
    survivors = [["file", "line", "mutation", "what of it"]] + [
        [f"`{each['file']}`", str(each["line"]), one_cell(each["mutation"]), each["why"]] for each in found["survivors"]
    ]
    return (
        f"`{found['command']}`: {drawn}. {found['killed_percent']} % were killed; of all, with a certainty of 95 %, "
        f"{low} to {high} %. {found.get('note', '')}\n\n{table(rows, 1)}\nSurvivors:\n\n{table(survivors, 4)}"
    )


def one_cell(source: str) -> str:
    """Code as a table can hold it."""
    return f"`{' '.join(source.split())}`".replace("|", "\\|")


def share(counts: dict) -> str:
    """Killed of all, in per cent."""
    return f"{100 * counts['killed'] / counts['mutants']:.1f} %" if counts["mutants"] else ""


def coverage() -> str:
    """The share of branches, and the files of which a part is not reached."""
    found = measured("coverage.json")
    reached = f"{found['branch_percent']} % of the branches and {found['line_percent']} % of the lines"
    rows = [["file", "function", "not reached", "why"]] + [
        [f"`{each['file']}`", f"`{each['function']}`", ", ".join(each["lines"]), each["why"]]
        for each in found["unreached"]
    ]
    return f"`{found['command']}`: {reached} are reached.\n\n{table(rows, 4)}"


def page() -> str:
    """The whole page."""
    return (
        f"{HEAD}\n{scorecard()}\n{FAULTS}\n{faults()}\n## Mutation testing\n\n"
        "A line of the library is changed; the tests should notice.\n\n"
        f"{mutation()}\n## Branch coverage\n\n{coverage()}"
    )


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except FileNotFoundError as error:
        sys.exit(str(error))
