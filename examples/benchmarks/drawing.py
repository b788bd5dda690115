"""A card for charts: curves over the number of voxels, and rows of dots.

Lengths are in pixels of the card; y points up.
"""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "svg.fonttype": "path",
        "svg.hashsalt": "attn3d",
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "stix",
        "font.size": 11,
    }
)

INK, FAINT, LINE = "#1f2328", "#656d76", "#57606a"
TEAL, BLUE, ORANGE = "#1b7c83", "#0969da", "#bc4c00"
GRID, EDGE = "#eaeef2", "#d0d7de"


class Card:
    """A white card to draw on.

    Args:
        width: width in pixels.
        height: height in pixels.
        title: the title, at the top left.
        note: a small text at the top right.
    """

    def __init__(self, width: float, height: float, title: str, note: str = "") -> None:
        self.width, self.height = width, height
        self.figure = pyplot.figure(figsize=(width / 100, height / 100))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")
        sheet = FancyBboxPatch(
            (3, 3), width - 6, height - 6, boxstyle="round,pad=0,rounding_size=12", fc="white", ec=EDGE, zorder=-9
        )
        sheet.set_clip_on(False)
        self.axes.add_patch(sheet)
        self.text(24, height - 28, title, size=14.5, ha="left")
        self.text(width - 24, height - 28, note, size=9, color=FAINT, ha="right")

    def text(
        self, x: float, y: float, words: str, *, size: float = 10.5, color: str = INK, ha="center", **style
    ) -> None:
        """Draws text, by default centred at a point."""
        self.axes.text(x, y, words, size=size, color=color, ha=ha, va=style.pop("va", "center"), zorder=9, **style)

    def save(self, path: Path) -> None:
        """Writes the card. An SVG file is reproducible, and without the parts that a browser does not need."""
        if path.suffix != ".svg":
            self.figure.savefig(path, dpi=150, transparent=True)
            return
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        path.write_text(_smaller(buffer.getvalue()))
        pyplot.close(self.figure)


def slope(points: np.ndarray) -> float:
    """The exponent of N with which a curve grows over the last factor of 8 in N."""
    last = np.log(points[points[:, 0] >= points[-1, 0] / 8])
    return float(np.polyfit(*last.T, 1)[0])


def over_voxels(card: Card, x: float, title: str, sizes: tuple[int, ...], ticks: dict[float, str]) -> Axes:
    """Logarithmic axes over N, with ticks at the cubes of the sizes; as high as the card permits."""
    width, height = 280, card.height - 165
    axes = _placed(card, x, 76, width, height)
    axes.set(xscale="log", yscale="log", xlim=(0.7 * sizes[0] ** 3, 1.4 * sizes[-1] ** 3))
    axes.set_xticks([size**3 for size in sizes], [f"{size:g}³" for size in sizes])
    axes.set_yticks(list(ticks), list(ticks.values()))
    card.text(x, card.height - 69, title, size=10.5, ha="left")
    return _bare(axes)


def in_lines(card: Card, x: float, width: float, title: str, count: int, ticks: dict[float, str], *, log: bool) -> Axes:
    """Axes with a row for each of ``count`` names, the first one at the top."""
    axes = _placed(card, x, 64, width, 30 * count)
    axes.set(ylim=(-0.5, count - 0.5), xscale="log" if log else "linear", xlim=(min(ticks), max(ticks)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks(range(count), [""] * count)
    axes.invert_yaxis()
    card.text(x, 64 + 30 * count + 14, title, size=9.5, ha="left")
    return _bare(axes)


def _placed(card: Card, x: float, y: float, width: float, height: float) -> Axes:
    return card.figure.add_axes((x / card.width, y / card.height, width / card.width, height / card.height))


def _bare(axes: Axes) -> Axes:
    axes.minorticks_off()
    axes.tick_params(labelsize=9, colors=FAINT, length=3)
    axes.grid(color=GRID, lw=0.8)
    axes.spines[:].set_color(EDGE)
    return axes


def _smaller(svg: str) -> str:
    """Removes metadata and names from an SVG, and rounds coordinates to one decimal."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= d=")[^"]+', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]).replace(" \n", " "), svg)
    svg = re.sub(r"(?<=translate\()[^)]+", lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg).replace("DejaVuSans-", "D").replace("STIXGeneral-", "S")
    svg = re.sub(r"\n\s*", "\n", svg).replace("; stroke-linejoin: miter", "").replace("; stroke", ";stroke")
    return re.sub(r"<g>\n(<(?:path|image)[^>]*/>\n)</g>\n", r"\1", svg)
