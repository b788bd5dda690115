"""Which tests run which line of the library, learnt by running them under coverage, for `tests.mutation`."""

from __future__ import annotations

import collections
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tests.mutants import Mutant

# The tests that may kill: those of networks, of examples and of the application run the same lines for longer.
TESTS = [
    "attention", "mechanisms", "layers",
    "test_arguments.py", "test_factory.py", "test_planning.py", "test_maps.py",
    "test_testing.py::test_every_configuration_keeps_the_contract",
    "test_testing.py::test_a_script_equals_eager_and_can_be_saved",
]  # fmt: skip
OPTIONS = ["-q", "-o", "addopts=", "-m", "not nightly", "-p", "no:cacheprovider"]
FIRST_SECONDS = 4.0  # of tests that mirror the file, before any other is collected


class Reach(NamedTuple):
    """Which tests run which lines.

    Attributes:
        seconds: that a test took, by its identifier; of those that passed.
        lines: by file and line, the tests that run it; none of a line that runs on import.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    def to_json(self) -> str:
        """As a file holds it."""
        return json.dumps(self._asdict())

    @classmethod
    def of_json(cls, text: str) -> Reach:
        """From what a file holds."""
        read = json.loads(text)
        lines = {path: {int(line): tests for line, tests in of.items()} for path, of in read["lines"].items()}
        return cls(read["seconds"], lines)


def learn_reach(root: Path) -> Reach:
    """Runs the tests under coverage.

    Raises:
        ImportError: when `coverage` or `pytest-cov` is not installed.
    """
    try:
        from coverage import CoverageData

        importlib.import_module("pytest_cov")
    except ImportError as error:
        raise ImportError("mutation testing needs coverage: python -m pip install pytest-cov") from error
    results, data = root / "results.xml", root / ".coverage"
    options = ["--cov=attn3d", "--cov-context=test", "--cov-report=", f"--junitxml={results}", "--cov-config=/dev/null"]
    chosen = [f"tests/{name}" for name in TESTS if (root / "tests" / name.split("::")[0]).exists()]
    command = [sys.executable, "-m", "pytest", *OPTIONS, *options, *chosen]
    subprocess.run(command, cwd=root, env=environment(root) | {"COVERAGE_FILE": str(data)}, check=False)
    covered = CoverageData(str(data))
    covered.read()
    return read_reach(results, covered, root)


def read_reach(results: Path, covered: Any, root: Path) -> Reach:
    """From the results of pytest and the data of coverage, which says which test ran which line."""
    seconds = {}
    for case in ElementTree.parse(results).iter("testcase"):
        if not len(case) or {child.tag for child in case} <= {"properties", "system-out", "system-err"}:
            seconds[_identifier(case.get("classname"), case.get("name"), root)] = float(case.get("time"))
    lines: dict[str, dict[int, list[str]]] = {}
    for file in covered.measured_files():
        by_line = {}
        for line, contexts in covered.contexts_by_lineno(file).items():
            by_line[line] = sorted({context.rsplit("|", 1)[0] for context in contexts} & seconds.keys())
        lines[str((root / file).relative_to(root))] = by_line
    return Reach(seconds, lines)


def _identifier(classname: str, name: str, root: Path) -> str:
    """Of a test, from the file and perhaps the classes that hold it, joined by dots."""
    parts = classname.split(".")
    length = next(n for n in range(1, len(parts) + 1) if root.joinpath(*parts[:n]).with_suffix(".py").is_file())
    return "::".join(["/".join(parts[:length]) + ".py", *parts[length:], name])


def chosen_for(mutant: Mutant, path: str, reach: Reach, limit: float) -> list[list[str]]:
    """The tests to run, in two parts: those that mirror the file, then the others; each within its seconds.

    A line that runs on import, is compiled by TorchScript or runs in a process that a test starts is one that coverage
    sees no test run: it gets the tests of its function or file. Those that mirror the file are always among them.
    """
    by_line = reach.lines.get(path, {})
    mirrors = {test for test in reach.seconds if test.split("::")[0] in mirrors_of(path)}
    found: set[str] = set()
    for lines in (mutant.lines, mutant.within, by_line):
        found = {test for line in lines for test in by_line.get(line, [])}
        if found:
            break
    cases: dict[str, list[str]] = collections.defaultdict(list)
    for test in sorted(found | mirrors, key=reach.seconds.__getitem__):
        cases[test.split("[")[0]].append(test)
    # One case of every test, then another of each: what a case does not notice, the next of the same seldom does.
    ranked = sorted(
        (turn, not (test in found and test in mirrors), reach.seconds[test], test)
        for of in cases.values()
        for turn, test in enumerate(sorted(of, key=lambda test: test not in found))
    )
    first = _within([one for one in ranked if not one[1]], min(limit, FIRST_SECONDS))
    rest = _within([one for one in ranked if one[3] not in set(first)], limit)
    return [part for part in (first, rest) if part]


def mirrors_of(path: str) -> set[str]:
    """The files of tests that are about a file of the library, or about a folder that it is in."""
    parts = Path(path).with_suffix("").parts[1:]
    return {"/".join(["tests", *parts[:n], f"test_{parts[n]}.py"]) for n in range(len(parts))}


def _within(ranked: Sequence[tuple[int, bool, float, str]], limit: float) -> list[str]:
    """From the first on, as many as take so many seconds; one at least."""
    chosen, spent = [], 0.0
    for *_, seconds, test in ranked:
        if not chosen or spent + seconds <= limit:
            chosen.append(test)
            spent += seconds
    return chosen


def environment(root: Path) -> dict[str, str]:
    """In which the copy of the library is the one that is imported, on one thread."""
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
