"""Writes docs/reliability.md from what was counted and measured: ``python docs/reliability.py``.

It takes over the reports of the tools that lie in the root of the repository (junit.xml, nightly.xml, coverage.json,
mutants/mutmut-cicd-stats.json) into docs/figures, and writes the page from there.
"""

import datetime
import importlib.util
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
PAGE = DOCS / "reliability.md"
SCORECARD = DOCS.parent / "tests" / "scorecard.py"
COMMANDS = {
    "scorecard": "python -m pytest --junitxml=junit.xml",
    "scorecard_nightly": "python -m pytest -m nightly --junitxml=nightly.xml",
    "coverage": "python -m pytest --cov --cov-report=json",
    "mutation": "mutmut run '*__mutmut_*7' && mutmut export-cicd-stats",
}
RUNS = {"per commit": "scorecard", "nightly": "scorecard_nightly"}

HEAD = """# Reliability

Written by `python docs/reliability.py` from runs of the tests: nothing here is counted by hand. A case is one input,
view, copy, capture or file that was checked, and counts under one condition. The configurations are the forms, modes
and published differences of the mechanisms, and the patterns of attention, each in 1-D, 2-D and 3-D. Each figure is of
the date beside it.

## Conditions
"""


FAULTS = """## Kills, full disks and odd inputs

A command is killed (SIGKILL) before a change of a name or the opening of a file, at points spread from the first to the
last; or its disk takes of each file one byte less than one of them needs. Then every file that is there must be whole,
and a person goes on: the result must be that of a command without faults, weights and labels bit for bit, with nothing
left over. A full disk and an odd input must be refused in lines that name a file or an argument; an odd input may also
have a right answer, and counts as recovered.
"""


def measured(name: str) -> dict | None:
    """What a file of docs/figures holds, or None where nothing has been measured."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def take_over(name: str, source: Path, read: Callable[[Path], dict]) -> None:
    """Writes what a report of a tool says into docs/figures, where there is such a report."""
    if source.exists():
        date = datetime.date.fromtimestamp(source.stat().st_mtime).isoformat()
        found = {"command": COMMANDS[name], "date": date} | read(source)
        (FIGURES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def read_junit(path: Path) -> dict:
    """How many tests, and cases of each condition, have passed, failed and been skipped."""
    suite = ElementTree.parse(path).find("testsuite")
    items: Counter[str] = Counter()
    cases: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for test in suite.iter("testcase"):
        skipped = test.find("skipped")
        failed = test.find("failure") is not None or test.find("error") is not None
        outcome = "failed" if failed else "passed" if skipped is None else "skipped"
        items[outcome] += 1
        properties = [(each.get("name"), each.get("value")) for each in test.iter("property")]
        counts = [(name.removeprefix("cases of "), int(n)) for name, n in properties if name.startswith("cases of ")]
        first = next((value for name, value in properties if name == "condition"), None)
        if first is not None and (failed or skipped is not None or not counts):
            cases.setdefault(first, Counter())[outcome] += 1
            if outcome == "skipped":
                reasons.setdefault(first, Counter())[skipped.get("message", "")] += 1
        for name, count in counts:
            cases.setdefault(name, Counter())["passed"] += count
    packages = ("torch", "monai", "numpy", "nibabel", "onnxruntime", "hypothesis", "pytest")
    return {
        "seconds": round(float(suite.get("time"))),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "items": items,
        "cases": {name: counts | {"reasons": reasons.get(name, {})} for name, counts in cases.items()},
    }


def read_coverage(path: Path) -> dict:
    """The totals, and of every file what no test reaches."""
    report = json.loads(path.read_text())
    files = {
        name: {"lines": of["missing_lines"], "branches": of["missing_branches"]} for name, of in report["files"].items()
    }
    return {"totals": report["totals"], "files": {name: of for name, of in files.items() if any(of.values())}}


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
    runs = {run: found for run, name in RUNS.items() if (found := measured(name))}
    rows = [["condition", "gate", "asked"]]
    rows[0] += [f"{run}: {what}" for run in runs for what in ("passed", "failed", "skipped")]
    skipped = []
    for name, condition in conditions().items():
        row = [condition.says, condition.gate, f"{condition.asked:,}"]
        for run, found in runs.items():
            cases = found["cases"].get(name, {})
            row += [f"{cases.get(what, 0):,}" for what in ("passed", "failed", "skipped")]
            skipped += [f"- {run}, {count}: {reason}\n" for reason, count in cases.get("reasons", {}).items()]
        rows.append(row)
    heads = [
        f"- {run}: `{found['command']}`, {found['date']}, {found['seconds'] / 60:.1f} minutes. Of all tests "
        + ", ".join(f"{found['items'].get(what, 0):,} {what}" for what in ("passed", "failed", "skipped"))
        + ". "
        + ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        + ".\n"
        for run, found in runs.items()
    ]
    reasons = f"\nSkipped:\n\n{''.join(skipped)}" if skipped else ""
    return f"{''.join(heads)}\n{table(rows, 2)}{reasons}"


def faults() -> str:
    """A row for each fault, and a line for each that went wrong."""
    found = measured("faults")
    counts = ("tried", "recovered", "refused", "wrong")
    rows = [["fault", *counts]] + [[row["what"], *(f"{row[count]:,}" for count in counts)] for row in found["rows"]]
    rows.append(["all", *(f"{sum(row[count] for row in found['rows']):,}" for count in counts)])
    wrong = [f"- {row['what']}, {problem}\n" for row in found["rows"] for problem in row["problems"]]
    return f"`{found['command']}`, {found['date']}.\n\n{table(rows, 1)}" + (
        "\nWrong:\n\n" + "".join(wrong) if wrong else ""
    )


def mutation() -> str:
    """How many mutants the tests killed."""
    found = measured("mutation")
    if found is None:
        return f"`{COMMANDS['mutation']}`: not measured for this version.\n"
    tried = sum(found[what] for what in ("killed", "timeout", "segfault", "suspicious", "survived", "no_tests"))
    killed = tried - found["survived"] - found["no_tests"]
    return (
        f"`{found['command']}`, {found['date']}: {tried:,} of {found['total']:,} mutants were tried. The tests killed "
        f"{killed:,}, {100 * killed / tried:.1f} %; {found['survived']:,} survived, and {found['no_tests']:,} are in "
        f"functions that no test runs. {found.get('note', '')}\n"
    )


def coverage() -> str:
    """The share of branches, and the files of which a part is not reached."""
    found = measured("coverage")
    if found is None:
        return f"`{COMMANDS['coverage']}`: not measured for this version.\n"
    totals = found["totals"]
    branches, lines = totals["covered_branches"] / totals["num_branches"], totals["percent_statements_covered"]
    rows = [["file", "lines", "branches"]]
    for name, missing in found["files"].items():
        branches_missed = [f"{start}->{'exit' if end < 0 else end}" for start, end in missing["branches"]]
        rows.append([f"`{name}`", ", ".join(map(str, missing["lines"])), ", ".join(branches_missed)])
    return (
        f"`{found['command']}`, {found['date']}: {100 * branches:.2f} % of the branches and {lines:.2f} % of the lines "
        f"are reached. Not reached:\n\n{table(rows, 3)}"
    )


REPORTS: list[tuple[str, str, Callable[[Path], dict]]] = [
    ("scorecard", "junit.xml", read_junit),
    ("scorecard_nightly", "nightly.xml", read_junit),
    ("coverage", "coverage.json", read_coverage),
    ("mutation", "mutants/mutmut-cicd-stats.json", lambda path: json.loads(path.read_text())),
]


def page() -> str:
    """The whole page."""
    return (
        f"{HEAD}\n{scorecard()}\n{FAULTS}\n{faults()}\n## Mutation testing\n\n"
        "A line of the library is changed; the tests should notice.\n\n"
        f"{mutation()}\n## Branch coverage\n\n{coverage()}"
    )


if __name__ == "__main__":
    for name, source, read in REPORTS:
        take_over(name, DOCS.parent / source, read)
    PAGE.write_text(page())
