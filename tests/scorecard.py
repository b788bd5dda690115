"""The scorecard: its conditions, and a plugin of pytest that counts how many cases of each a run has checked.

A test says with ``@pytest.mark.scorecard("finite")`` which condition it answers. An item is one case; one that checks
several takes the fixture ``count_cases`` and calls it after each that has passed. Of an item that answers several
conditions every case says which. ``--scorecard=FILE`` writes what was counted.
"""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Condition(NamedTuple):
    """What holds, under which gate, and how many cases of it were asked for."""

    says: str
    gate: str
    asked: int


CONDITIONS = {
    "math": Condition(
        "output and all gradients equal those of independent loops in float64, every parameter random, five shapes",
        "1e-10, gradients 1e-9",
        810,
    ),
    "gradients": Condition(
        "first and second derivatives by finite differences in float64; a clear error where there is no second",
        "torch's defaults",
        162,
    ),
    "collapse": Condition("an axis of size one may be left out: 3-D equals 2-D equals 1-D", "1e-12", 54),
    "order": Condition("axes permuted with the weights, samples permuted, samples alone", "1e-12", 243),
    "backends": Condition(
        "every backend, dtype, chunk size (1, 7, N - 1, N, N + 5), mask and number of axes, forward and backward",
        "at most 2 times the error of the plain form in the same dtype, gradients 3 times; tables a unit more",
        1440,
    ),
    "finite": Condition(
        "dtypes and scales of the input; constant, zero and one-hot content; float16 at 48³ and 64³",
        "no NaN, no infinity where the same in float64 fits the dtype",
        1674,
    ),
    "shapes": Condition(
        "batch 0, 1, 2 at size 1, prime, anisotropic, an axis of size 1; 1, 2, 3, 8, 33 channels",
        "shape and value",
        1377,
    ),
    "memory": Condition(
        "channels last, permuted, sliced, expanded, leaf, frozen, inference mode, checkpointed",
        "1e-10 in float64, format kept (there 1e-4 in float32)",
        810,
    ),
    "repeats": Condition(
        "evaluation repeats with dropout set; training on one sample of one voxel", "bitwise; finite", 243
    ),
    "captures": Condition(
        "compile (one graph, static and dynamic), export with dynamic batch and space, trace, script, ONNX",
        "no graph break, equal",
        405,
    ),
    "persistence": Condition(
        "frozen keys, strict load, weights_only, pickle, deepcopy, meta device, dtype and device",
        "exact",
        567,
    ),
    "operators": Condition("no operator that lacks a deterministic form on CUDA, forward and backward", "0", 81),
    "errors": Condition("type, and the message names the argument and its value", "regular expression", 80),
    "insertion": Condition(
        "MONAI networks, mechanisms, sites: runs once, gradients flow, old checkpoint loads, removal",
        "bitwise",
        480,
    ),
    "files": Condition(
        "NIfTI files with mutated headers and cut short: a clear error or a right answer", "under 200 MB", 1000
    ),
    "random": Condition("random configurations by hypothesis", "no failure", 16200),
}

OUTCOMES = ("passed", "failed", "skipped")
_PROPERTY = "scorecard"
_counted = pytest.StashKey[collections.Counter]()


class Run:
    """What the items of a run add up to: a plugin, of which every process has one and the first hears of all."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.start = time.time()
        self.items: collections.Counter[str] = collections.Counter()
        self.cases = {name: dict.fromkeys(OUTCOMES, 0) for name in CONDITIONS}
        self.reasons = {name: collections.Counter() for name in CONDITIONS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes in the cases that a report carries."""
        for name, found in report.user_properties:
            if name == _PROPERTY:
                self.items[found["item"]] += 1
                for condition, outcome, cases in found["cases"]:
                    self.cases[condition][outcome] += cases
                    if outcome == "skipped":
                        self.reasons[condition][found["reason"]] += cases

    def pytest_sessionfinish(self) -> None:
        """Writes the file, from the process that was started and no worker."""
        path = self.config.getoption("scorecard")
        if path and not hasattr(self.config, "workerinput"):
            Path(path).write_text(json.dumps(self.summary(), indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        """What is written."""
        packages = ("torch", "monai", "numpy", "nibabel", "onnxruntime", "hypothesis", "pytest")
        return {
            "command": " ".join(["python -m pytest", *self.config.invocation_params.args]),
            "date": datetime.date.today().isoformat(),
            "seconds": round(time.time() - self.start),
            "processes": self.config.getoption("numprocesses", None) or 1,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in packages},
            "items": {outcome: self.items[outcome] for outcome in OUTCOMES},
            "cases": {
                name: counts | ({"reasons": dict(self.reasons[name])} if counts["skipped"] else {})
                for name, counts in self.cases.items()
                if any(counts.values())
            },
        }


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--scorecard=FILE``, in one word: pytest reads it before it knows that it takes a file."""
    parser.addoption("--scorecard", metavar="FILE", help="write how many cases of each condition were checked")


def pytest_configure(config: pytest.Config) -> None:
    """Starts to count."""
    config.pluginmanager.register(Run(config), "the run of the scorecard")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a condition that is not on the scorecard, and cases whose condition is not told."""
    for item in items:
        names = conditions_of(item)
        for name in names:
            if name not in CONDITIONS:
                raise pytest.UsageError(f"{item.nodeid}: no condition of the scorecard is called {name!r}")
        if len(names) > 1 and "count_cases" not in item.fixturenames:
            raise pytest.UsageError(f"{item.nodeid}: without `count_cases` it does not say which of its conditions")


def conditions_of(item: pytest.Item) -> tuple[str, ...]:
    """Those that the marker nearest to a test names; none with an empty marker."""
    marker = item.get_closest_marker("scorecard")
    return marker.args if marker else ()


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function ``(cases=1, condition=None)`` that says that so many cases have passed."""
    counted = request.node.stash[_counted] = collections.Counter()
    conditions = conditions_of(request.node)

    def count(cases: int = 1, condition: str | None = None) -> None:
        if condition is None:
            (condition,) = conditions
        elif condition not in conditions:
            raise ValueError(f"the test is not marked with {condition!r} but with {', '.join(conditions)}")
        counted[condition] += cases

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Puts the cases of an item into the report that ends it, with which they reach the process that sums."""
    report = yield
    if report.when == "call" or not report.passed:
        found = {
            "item": report.outcome if report.when != "teardown" else "failed",
            "cases": cases_of(item, report),
            "reason": report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "",
        }
        report.user_properties.append((_PROPERTY, found))
    return report


def cases_of(item: pytest.Item, report: pytest.TestReport) -> list[tuple[str, str, int]]:
    """(condition, outcome, cases). A case that fails or is skipped ends its item, and is one."""
    conditions = conditions_of(item)
    counted = item.stash.get(_counted, None)
    if not conditions:
        return []
    passed = [(name, "passed", cases) for name, cases in (counted or {}).items()] if report.when == "call" else []
    if not report.passed:
        return [*passed, (conditions[0], report.outcome, 1)]
    if counted is None:
        (only,) = conditions
        return [(only, "passed", 1)]
    return passed
