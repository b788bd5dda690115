"""What tests are left out of the default run, and what their parameters are called."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], by_night: Callable[[Any], bool]) -> list[Any]:
    """Parameters, those of which ``by_night`` is true marked for ``python -m pytest -m nightly``."""
    return [pytest.param(value, marks=pytest.mark.nightly) if by_night(value) else value for value in values]


def plain_id(value: Any) -> str:
    """A parameter as an id, without the backslashes of a regular expression, with which mutmut finds no test."""
    return str(value).replace("\\", "")
