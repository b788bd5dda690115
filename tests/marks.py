"""What is left out of the default run: more of the same, which ``python -m pytest -m nightly`` runs."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], by_night: Callable[[Any], bool]) -> list[Any]:
    """Parameters, those of which ``by_night`` is true marked as nightly."""
    return [pytest.param(value, marks=pytest.mark.nightly) if by_night(value) else value for value in values]
