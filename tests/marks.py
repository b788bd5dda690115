"""Marks and ids of test parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], nightly: Callable[[Any], bool]) -> list[Any]:
    """Parameters, of which those where ``nightly`` is true run only with ``python -m pytest -m nightly``."""
    return [pytest.param(value, marks=pytest.mark.nightly) if nightly(value) else value for value in values]


def plain_id(value: Any) -> str:
    """A parameter as an id without backslashes, with which mutmut does not find the test."""
    return str(value).replace("\\", "")
