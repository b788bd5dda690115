"""Charts on a card: curves over the number of voxels, and dots in lines."""

import numpy as np
from matplotlib.axes import Axes

from .card import FAINT, INK, Card

GRID, EDGE = "#eaeef2", "#d0d7de"


def slope(points: np.ndarray) -> float:
    """The power of N with which it grows at the end: over the last factor of 8 in N."""
    last = np.log(points[points[:, 0] >= points[-1, 0] / 8])
    return float(np.polyfit(*last.T, 1)[0])


def over_voxels(card: Card, x: float, title: str, sizes: tuple[int, ...], ticks: dict[float, str]) -> Axes:
    """Axes over N, both logarithmic, marked at the cubes of the sizes."""
    width, height = 280, 290
    axes = _placed(card, x, 76, width, height)
    axes.set(xscale="log", yscale="log", xlim=(0.7 * sizes[0] ** 3, 1.4 * sizes[-1] ** 3))
    axes.set_xticks([size**3 for size in sizes], [f"{size:g}³" for size in sizes])
    axes.set_yticks(list(ticks), list(ticks.values()))
    card.text(x, 386, title, size=10.5, ha="left")
    return _bare(axes)


def in_lines(card: Card, x: float, width: float, title: str, count: int, ticks: dict[float, str], *, log: bool) -> Axes:
    """Axes with a line for each of ``count`` names, the first on top."""
    axes = _placed(card, x, 64, width, 30 * count)
    axes.set(ylim=(-0.5, count - 0.5), xscale="log" if log else "linear", xlim=(min(ticks), max(ticks)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks(range(count), [""] * count)
    axes.invert_yaxis()
    card.text(x, 64 + 30 * count + 14, title, size=9.5, ha="left")
    return _bare(axes)


def beside(axes: Axes, x: float, y: float, words: str) -> None:
    """What a curve comes to, above its end."""
    axes.annotate(words, (x, y), (2, 7), textcoords="offset points", ha="right", size=9, color=INK)


def _placed(card: Card, x: float, y: float, width: float, height: float) -> Axes:
    return card.figure.add_axes((x / card.width, y / card.height, width / card.width, height / card.height))


def _bare(axes: Axes) -> Axes:
    axes.minorticks_off()
    axes.tick_params(labelsize=9, colors=FAINT, length=3)
    axes.grid(color=GRID, lw=0.8)
    axes.spines[:].set_color(EDGE)
    return axes
