"""Writes the tables of docs/reliability.md from the results of test runs: ``python docs/reliability.py``.

First it converts the reports of the tools in the root of the repository (junit.xml, nightly.xml, coverage.json,
mutants/mutmut-cicd-stats.json) to JSON files in docs/figures. Then it writes the page from these files.
"""

import datetime
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1]))  # to import `docs` and `tests`

from docs.tables import between_marks, markdown
from tests.scorecard import CONDITIONS

DOCS = Path(__file__).parent
PAGE, FIGURES = DOCS / "reliability.md", DOCS / "figures"
COMMANDS = {
    "scorecard": "python -m pytest --junitxml=junit.xml",
    "scorecard_nightly": "python -m pytest -m nightly tests/test_random_configurations.py --junitxml=nightly.xml",
    "coverage": "python -m pytest --cov --cov-report=json",
    "mutation": "mutmut run $(python -m tests.mutants 400) && mutmut export-cicd-stats",
}
OUTCOMES = ("passed", "failed", "skipped")
RUNS = {"per commit": "scorecard", "nightly": "scorecard_nightly"}


def measured(name: str) -> dict | None:
    """The content of a file of docs/figures, or None if nothing has been measured."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def take_over(name: str, source: Path, read: Callable[[Path], dict]) -> None:
    """Writes the numbers of a tool's report to docs/figures, if there is such a report."""
    if source.exists():
        date = datetime.date.fromtimestamp(source.stat().st_mtime).isoformat()
        found = {"command": COMMANDS[name], "date": date} | read(source)
        (FIGURES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def read_junit(path: Path) -> dict:
    """The numbers of tests, and of cases of each condition, that have passed, failed and been skipped."""
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


def scorecard() -> str:
    """A row for each condition with both runs, and a list of skipped cases with their reasons."""
    runs = {run: found for run, name in RUNS.items() if (found := measured(name))}
    rows = [["condition", "tolerance", "required", *(f"{run}: {what}" for run in runs for what in OUTCOMES)]]
    skipped = []
    for name, condition in CONDITIONS.items():
        rows.append([condition.says, condition.gate, f"{condition.asked:,}"])
        for run, found in runs.items():
            cases = found["cases"].get(name, {})
            rows[-1] += [f"{cases.get(what, 0):,}" for what in OUTCOMES]
            skipped += [f"- {run}, {count} cases: {reason}\n" for reason, count in cases.get("reasons", {}).items()]
    heads = [
        f"- {run}: `{found['command']}`, {found['date']}, {found['seconds'] / 60:.1f} minutes. Tests: "
        + ", ".join(f"{found['items'].get(what, 0):,} {what}" for what in OUTCOMES)
        + ". Versions: "
        + ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        + ".\n"
        for run, found in runs.items()
    ]
    reasons = f"\nSkipped:\n\n{''.join(skipped)}" if skipped else ""
    return f"{''.join(heads)}\n{markdown(rows, 'll' + 'r' * (len(rows[0]) - 2))}{reasons}"


def faults() -> str:
    """A row for each kind of fault, and a list of those with a wrong result."""
    found = measured("faults")
    counts = ("tried", "recovered", "refused", "wrong")
    rows = [["fault", *counts]] + [[row["what"], *(f"{row[count]:,}" for count in counts)] for row in found["rows"]]
    rows.append(["all", *(f"{sum(row[count] for row in found['rows']):,}" for count in counts)])
    wrong = [f"- {row['what']}, {problem}\n" for row in found["rows"] for problem in row["problems"]]
    return f"`{found['command']}`, {found['date']}.\n\n{markdown(rows, 'lrrrr')}" + (
        "\nWrong:\n\n" + "".join(wrong) if wrong else ""
    )


def mutation() -> str:
    """The number of mutants that the tests killed."""
    found = measured("mutation")
    if found is None:
        return f"`{COMMANDS['mutation']}`: not measured for this version.\n"
    killed = sum(found[what] for what in ("killed", "timeout", "segfault", "suspicious"))
    run, drawn = killed + found["survived"], killed + found["survived"] + found["no_tests"]
    return (
        f"`{found['command']}`, {found['date']}: {drawn:,} of {found['total']:,} mutants were drawn. Of {run:,} in "
        f"functions that the tests run, they killed {killed:,}, {100 * killed / run:.1f} %; {found['survived']:,} "
        f"survived. The other {found['no_tests']:,} are in functions that only run while a module is captured, where "
        f"mutmut's wrappers do not work. {found.get('note', '')}\n"
    )


def coverage() -> str:
    """The percentage of branches and lines that the tests reach."""
    found = measured("coverage")
    if found is None:
        return f"`{COMMANDS['coverage']}`: not measured for this version.\n"
    totals = found["totals"]
    branches, lines = totals["covered_branches"] / totals["num_branches"], totals["percent_statements_covered"]
    return (
        f"`{found['command']}`, {found['date']}: {100 * branches:.2f} % of the {totals['num_branches']:,} branches and "
        f"{lines:.2f} % of the lines are reached. `coverage report --show-missing` lists the others.\n"
    )


REPORTS: list[tuple[str, str, Callable[[Path], dict]]] = [
    ("scorecard", "junit.xml", read_junit),
    ("scorecard_nightly", "nightly.xml", read_junit),
    ("coverage", "coverage.json", lambda path: {"totals": json.loads(path.read_text())["totals"]}),
    ("mutation", "mutants/mutmut-cicd-stats.json", lambda path: json.loads(path.read_text())),
]


def rewritten(page: str) -> str:
    """The page with the results of the last runs."""
    for part in (scorecard, faults, mutation, coverage):
        page = between_marks(page, part.__name__, part())
    return page


if __name__ == "__main__":
    for name, source, read in REPORTS:
        take_over(name, DOCS.parent / source, read)
    PAGE.write_text(rewritten(PAGE.read_text()))
