"""The scorecard: its conditions, and how a test says how many cases of them it has checked.

A test names with ``@pytest.mark.scorecard("finite")`` the condition that it answers. A test is one case; one that
checks several takes the fixture ``count_cases`` and calls it after each that has passed. Of a test that answers several
conditions every case says which. They are properties of the test in the file of ``--junitxml``, which
``docs/reliability.py`` adds up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a condition that is not on the scorecard, and cases whose condition is not told."""
    for item in items:
        names = conditions_of(item)
        for name in names:
            if name not in CONDITIONS:
                raise pytest.UsageError(f"{item.nodeid}: no condition of the scorecard is called {name!r}")
        if len(names) > 1 and "count_cases" not in item.fixturenames:
            raise pytest.UsageError(f"{item.nodeid}: without `count_cases` it does not say which of its conditions")
        item.user_properties += [("condition", name) for name in names]


def conditions_of(item: pytest.Item) -> tuple[str, ...]:
    """Those that the marker nearest to a test names; none with an empty marker."""
    marker = item.get_closest_marker("scorecard")
    return marker.args if marker else ()


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """A function ``(cases=1, condition=None)`` that says that so many cases have passed."""
    conditions = conditions_of(request.node)
    counted = collections.Counter(dict.fromkeys(conditions, 0))

    def count(cases: int = 1, condition: str | None = None) -> None:
        if condition is None:
            (condition,) = conditions
        elif condition not in conditions:
            raise ValueError(f"the test is not marked with {condition!r} but with {', '.join(conditions)}")
        counted[condition] += cases

    yield count
    request.node.user_properties += [(f"cases of {name}", cases) for name, cases in counted.items()]
