"""Renders the templates of pages. All values are escaped; filters format numbers and settings."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attn3d.plotting.words import in_millilitres


def render(template: str, **values: Any) -> str:
    """Renders a template of this folder. A value that is missing raises an error."""
    environment = Environment(
        loader=PackageLoader("attn3d.segmentation.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "plain": _plain, "millilitres": in_millilitres}
    return environment.get_template(template).render(**values)


def _number(value: float | None, digits: int = 2) -> str:
    """Formats a number for a table; None is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> str:
    """Formats a setting as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        nested = any(isinstance(one, list | tuple | Mapping) for one in value)
        return "; ".join(f"({_plain(one)})" for one in value) if nested else ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
