"""Text of figures, tables and pages: names of files and labels as literal text, legends, and volumes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 1.5 / 72  # height of a line of text and its gap in inches, per point of font size
_CHARACTER = 0.6 / 72  # upper bound of the mean width of a character in inches, per point of font size
_SIDE = 0.85  # inches of colour and gap of an entry of a legend


def in_millilitres(volume: float) -> str:
    """Formats a volume with one decimal, or below 1 ml with two digits, so that a small lesion is not 0.0 ml."""
    if 0 < volume < 0.995:  # more is rounded to 1.0
        return np.format_float_positional(volume, precision=2, fractional=False, trim="-")  # 0.000027, not 2.7e-05
    return f"{volume:.1f}"


def verbatim(name: str) -> str:
    """Escapes a name so that matplotlib does not parse it as a formula; invalid UTF-8 is shown with backslashes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def wrapped(words: str, inches: float, size: float) -> str:
    """Wraps a name to a width, for a font size in points, and escapes it."""
    return verbatim("\n".join(textwrap.wrap(words, max(8, int(inches / (_CHARACTER * size))))))


def legend_below(figure: Figure, handles: Sequence[Any], color: str, size: int) -> int:
    """Adds a legend below the axes, with wrapped names in the columns with the fewest lines; returns their number."""
    if not handles:
        return 0
    width, given = figure.get_figwidth(), [handle.get_label() for handle in handles]
    longest = max((len(word) for name in given for word in name.split()), default=0)  # words are not broken
    most = max(1, min(len(handles), int(width / (_SIDE + longest * _CHARACTER * size))))
    lines = {}
    for columns in range(1, 1 + most):
        names = [wrapped(name, width / columns - _SIDE, size) for name in given]
        parts = np.array_split([1 + name.count("\n") for name in names], columns)  # as matplotlib
        lines[columns] = int(max(part.sum() for part in parts))
    columns = min(lines, key=lines.__getitem__)
    for handle, name in zip(handles, given, strict=True):
        handle.set_label(wrapped(name, width / columns - _SIDE, size))
    figure.legend(
        handles=handles,  # given explicitly, since matplotlib leaves out names that start with "_"
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        labelcolor=color,
        fontsize=size,
    )
    return lines[columns]
