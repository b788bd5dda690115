"""Names of files and labels as literal text in a figure."""

from __future__ import annotations

import textwrap

CHARACTER = 0.6 / 72  # upper bound of the mean width of a character in inches, per point of font size


def verbatim(name: str) -> str:
    """Escapes a name so that matplotlib does not parse it as a formula; invalid UTF-8 is shown with backslashes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def wrapped(words: str, inches: float, size: float) -> str:
    """Wraps a name to a width, for a font size in points, and escapes it."""
    return verbatim("\n".join(textwrap.wrap(words, max(8, int(inches / (CHARACTER * size))))))
