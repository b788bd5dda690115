"""The scorecard: its conditions, and how a test reports how many cases of them it has checked.

The marker ``@pytest.mark.scorecard("finite")`` names the condition that a test checks. A test counts as one case. A
test of several cases takes the fixture ``count_cases`` and calls it after each case that has passed, with the name of
the condition if the test has several. The counts are written to the file of ``--junitxml`` as properties of the test,
and ``docs/reliability.py`` adds them up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest


class Condition(NamedTuple):
    """What is checked, with which tolerance, and how many cases are required."""

    says: str
    gate: str
    asked: int


CONDITIONS = {
    "math": Condition(
        "output and all gradients equal an independent float64 reference; all parameters random, five shapes",
        "1e-10, gradients 1e-9",
        810,
    ),
    "gradients": Condition(
        "first and second derivatives equal finite differences in float64; a clear error if there is no second one",
        "PyTorch's defaults",
        162,
    ),
    "collapse": Condition("an axis of size 1 can be removed: 3-D equals 2-D equals 1-D", "1e-12", 54),
    "order": Condition("axes permuted together with the weights; samples permuted; samples one by one", "1e-12", 243),
    "backends": Condition(
        "every backend, dtype, chunk size (1, 7, N - 1, N, N + 5), mask and number of axes, forward and backward",
        "at most 2 times the error of the plain form in the same dtype, gradients 3 times; tables plus 1 ulp",
        1440,
    ),
    "finite": Condition(
        "dtypes and scales of the input; constant, zero and one-hot content; float16 at 48³ and 64³",
        "no NaN or infinity if the float64 result fits the dtype",
        1674,
    ),
    "shapes": Condition(
        "batch 0, 1, 2 at size 1, prime, anisotropic, an axis of size 1; 1, 2, 3, 8, 33 channels",
        "shape and value",
        1377,
    ),
    "memory": Condition(
        "channels last, permuted, sliced, expanded, leaf, frozen, inference mode, checkpointed",
        "1e-10 in float64; memory format kept, checked with 1e-4 in float32",
        810,
    ),
    "repeats": Condition(
        "evaluation with dropout is repeatable; training on one sample of one voxel", "bitwise; finite", 243
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
    "operators": Condition("operators without a deterministic form on CUDA, forward and backward", "none", 81),
    "errors": Condition(
        "the type of the error; its message names the argument and its value", "regular expression", 80
    ),
    "insertion": Condition(
        "MONAI networks, mechanisms and sites: a forward pass, gradients, loading of an old checkpoint, removal",
        "bitwise",
        480,
    ),
    "files": Condition(
        "NIfTI files with mutated headers or missing ends: a clear error or a correct result", "under 200 MB", 1000
    ),
    "random": Condition("random configurations from Hypothesis", "no failure", 16200),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raises for unknown conditions, and for tests of several conditions that do not use ``count_cases``."""
    for item in items:
        names = conditions_of(item)
        for name in names:
            if name not in CONDITIONS:
                raise pytest.UsageError(f"{item.nodeid}: no condition of the scorecard is called {name!r}")
        if len(names) > 1 and "count_cases" not in item.fixturenames:
            raise pytest.UsageError(f"{item.nodeid}: without `count_cases` it does not say which of its conditions")
        item.user_properties += [("condition", name) for name in names]


def conditions_of(item: pytest.Item) -> tuple[str, ...]:
    """The conditions of the marker closest to a test; none for an empty marker."""
    marker = item.get_closest_marker("scorecard")
    return marker.args if marker else ()


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """A function ``(cases=1, condition=None)`` that counts cases that have passed."""
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
