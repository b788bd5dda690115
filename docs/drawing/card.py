"""The visual language of the figures: one card, a few shapes, a colour for each role.

Grey is anatomy and features, teal what was pooled, blue what is learnt, orange a gate or a weight.
Lengths are in pixels of the card, y upwards.
"""

import base64
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.transforms import Affine2D
from PIL import Image

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
SHEET = {"teal": "#d8f0ee", "blue": "#ddf4ff", "orange": "#fff1e5"}
GREYS = LinearSegmentedColormap.from_list("greys", ["#0d1117", "#6e7781", "#ffffff"])
WARM = LinearSegmentedColormap.from_list("warm", ["#fff8f0", "#ffc680", "#fb8f44", "#bc4c00", "#5c2200"])
COOL = LinearSegmentedColormap.from_list("cool", ["#f0faf9", "#8fd0cb", "#1b7c83", "#0b3f45"])
DEPTH = np.array([0.47, 0.36])  # how a unit of depth is drawn: to the right and up
LEVELS = 16  # of a texture: few enough for a small file


class Card:
    """A white card to draw on.

    Args:
        width: in pixels.
        height: in pixels.
        title: above the drawing.
        note: beside the title, in small print.
    """

    def __init__(self, width: float, height: float, title: str, note: str = "") -> None:
        self.width, self.height = width, height
        self.figure = pyplot.figure(figsize=(width / 100, height / 100))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")
        sheet = FancyBboxPatch(
            (3, 3), width - 6, height - 6, boxstyle="round,pad=0,rounding_size=12", fc="white", ec="#d0d7de", zorder=-9
        )
        self._add(sheet)
        self.text(24, height - 28, title, size=14.5, ha="left")
        self.text(width - 24, height - 28, note, size=9, color=FAINT, ha="right")

    def text(
        self, x: float, y: float, words: str, *, size: float = 10.5, color: str = INK, ha="center", **style
    ) -> None:
        """Words centred at a point."""
        self.axes.text(x, y, words, size=size, color=color, ha=ha, va=style.pop("va", "center"), zorder=9, **style)

    def volume(self, x: float, y: float, values: np.ndarray, *, scale=1.9, cmap=GREYS, span=(0, 1), behind=0) -> float:
        """A box with the cut planes of a volume (depth, right, up), and plain ones for further channels behind it.

        Args:
            x: of the lower left corner of its front.
            y: of the same.
            values: the volume.
            scale: pixels of a voxel.
            cmap: colours.
            span: the values of the first and the last colour.
            behind: how many further boxes.

        Returns:
            where its back ends, along x.
        """
        depth, right, up = (size * scale for size in values.shape)
        back = DEPTH * depth
        for place in range(behind, 0, -1):
            self._box(x - 7 * place, y + 6 * place, right, up, back, fc=cmap(0.0 if cmap is not GREYS else 0.93))
        shades = cmap(np.round(np.clip((values - span[0]) / (span[1] - span[0]), 0, 1) * LEVELS) / LEVELS)
        self._face(shades[0].swapaxes(0, 1), (x, y), (right, 0), (0, up))
        self._face(shades[:, :, -1], (x, y + up), (right, 0), back)
        self._face(shades[:, -1].swapaxes(0, 1), (x + right, y), back, (0, up))
        self._box(x, y, right, up, back, fc="none")
        return x + right + back[0]

    def _box(self, x: float, y: float, right: float, up: float, back: np.ndarray, fc) -> None:
        corner = np.array([x, y])
        for face in (
            [(0, 0), (right, 0), (right, up), (0, up)],
            [(0, up), (right, up), (right + back[0], up + back[1]), (back[0], up + back[1])],
            [(right, 0), (right + back[0], back[1]), (right + back[0], up + back[1]), (right, up)],
        ):
            self._add(Polygon(corner + face, fc=fc, ec=INK, lw=0.8, joinstyle="round"))

    def _face(self, shades: np.ndarray, origin, along, up) -> None:
        rows, columns = shades.shape[:2]
        place = Affine2D.from_values(
            along[0] / columns, along[1] / columns, up[0] / rows, up[1] / rows, origin[0], origin[1]
        )
        self.axes.imshow(
            shades, clip_on=False, origin="lower", extent=(0, columns, 0, rows), interpolation="none", aspect="auto",
            transform=place + self.axes.transData, zorder=1,
        )  # fmt: skip
        self.axes.set(xlim=(0, self.width), ylim=(0, self.height))

    def cells(
        self, x: float, y: float, values: np.ndarray, *, cmap=WARM, span=(0, 1), width=13.0, height=112.0
    ) -> None:
        """A vector over the channels, a cell for each, centred at the height y."""
        shades = cmap((np.asarray(values) - span[0]) / (span[1] - span[0]))
        tall = height / len(values)
        for index, shade in enumerate(shades):
            self._rectangle(x, y + height / 2 - tall * (index + 1), width, tall, fc=shade, ec="white", lw=0.4)
        self._rectangle(x, y - height / 2, width, height, fc="none", ec=INK, lw=0.8)

    def bars(
        self, x: float, y: float, values: np.ndarray, *, length=44.0, height=112.0, span=(0, 1), rest="#f3f4f6"
    ) -> None:
        """A gate over the channels as bars, each as long as its value, centred at the height y."""
        tall = height / len(values)
        self._rectangle(x, y - height / 2, length, height, fc=rest, ec="none")
        zero = x + length * max(0.0, -span[0] / (span[1] - span[0]))
        for index, value in enumerate(values):
            base = y + height / 2 - tall * (index + 1)
            extent = length * value / (span[1] - span[0])
            shade = WARM(0.25 + 0.6 * abs(value) / max(abs(span[0]), abs(span[1])))
            self._rectangle(min(zero, zero + extent), base + 0.8, abs(extent), tall - 1.6, fc=shade, ec="none")
        self.axes.plot([zero, zero], [y - height / 2, y + height / 2], color=INK, lw=0.9, zorder=4, clip_on=False)

    def profile(self, x: float, y: float, values: np.ndarray, along, across, *, color=ORANGE, span=(0, 1)) -> None:
        """A curve over the axis from (x, y) in the direction ``along``, its values in the direction ``across``."""
        steps = np.linspace(0, 1, len(values))[:, None]
        level = ((np.asarray(values) - span[0]) / (span[1] - span[0]))[:, None]
        base = np.array([x, y]) + steps * np.array(along)
        curve = base + level * np.array(across)
        self._add(Polygon(np.concatenate([curve, base[::-1]]), fc=color, alpha=0.22, ec="none", zorder=3))
        self.axes.plot(*curve.T, color=color, lw=1.5, zorder=4)
        self.axes.plot(*base.T, color=INK, lw=0.8, zorder=4)

    def layer(self, x: float, y: float, words: str, *, width=74.0, height=34.0, role="blue") -> None:
        """Something computed, in a rounded box centred at (x, y); blue when it is learnt."""
        edge = {"blue": BLUE, "teal": TEAL, "orange": ORANGE}[role]
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=6", fc=SHEET[role], ec=edge, lw=1.0, zorder=5,
        )  # fmt: skip
        self._add(box)
        self.text(x, y - 0.5, words, size=10)

    def sign(self, x: float, y: float, symbol: str, *, radius=11.0) -> None:
        """A sum, a product or a function of one letter, in a circle."""
        self._add(Circle((x, y), radius, fc="white", ec=INK, lw=1.1, zorder=6))
        self.text(x, y, symbol, size=13)

    def arrow(self, *points: tuple[float, float], words: str = "", head: bool = True, color=LINE, style="-") -> None:
        """A line through the points with right angles as they come, its head at the last."""
        path = np.array(points, dtype=float)
        if len(path) > 2:
            self.axes.plot(*path[:-1].T, color=color, lw=1.3, ls=style, zorder=4, solid_joinstyle="round")
        self._add(
            FancyArrowPatch(
                path[-2], path[-1], arrowstyle="-|>" if head else "-", mutation_scale=11, shrinkA=0, shrinkB=0,
                color=color, lw=1.3, ls=style, zorder=4,
            )
        )  # fmt: skip
        if words:
            middle = path[:2].mean(0)
            self.text(middle[0], middle[1] + 11, words, size=9.5, color=color)

    def line(self, *points: tuple[float, float], color=LINE, width=1.3) -> None:
        """A line through the points."""
        self.axes.plot(*np.transpose(points), color=color, lw=width, zorder=2, clip_on=False)

    def cross(self, x: float, y: float) -> None:
        """Marks a voxel."""
        for color, width in (("white", 3.2), ("#cf222e", 1.6)):
            for along, up in ((6, 0), (0, 6)):
                self.axes.plot([x - along, x + along], [y - up, y + up], color=color, lw=width, zorder=8)

    def funnel(self, x: float, y: float, to: float, *, wide=100.0, narrow=40.0, color=TEAL) -> None:
        """Many values becoming few: from (x, y), ``wide`` high, to ``to``."""
        shape = [(x, y - wide / 2), (to, y - narrow / 2), (to, y + narrow / 2), (x, y + wide / 2)]
        self._add(Polygon(shape, fc=color, alpha=0.13, ec="none", zorder=2))

    def matrix(self, x: float, y: float, values: np.ndarray, *, size=96.0, cmap=WARM, span=(0, 1)) -> None:
        """A square matrix, its lower left corner at (x, y)."""
        shades = cmap((values - span[0]) / (span[1] - span[0]))
        crisp = shades[::-1].repeat(6, 0).repeat(6, 1)  # also where a viewer smooths images
        self._face(crisp, (x, y), (size, 0), (0, size))
        self._rectangle(x, y, size, size, fc="none", ec=INK, lw=0.8)

    def _add(self, patch) -> None:
        patch.set_clip_on(False)
        self.axes.add_patch(patch)

    def _rectangle(self, x: float, y: float, width: float, height: float, **style) -> None:
        self._add(pyplot.Rectangle((x, y), width, height, zorder=3, **style))

    def save(self, path: Path) -> None:
        """Writes the card; as SVG the same bytes every time, without what a browser does not need."""
        if path.suffix != ".svg":
            self.figure.savefig(path, dpi=150, transparent=True)
            return
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        path.write_text(_smaller(buffer.getvalue()))
        pyplot.close(self.figure)


def _smaller(svg: str) -> str:
    """Without metadata and names, with palettes in its images and only the digits that can be seen."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<=base64,)[^\"]+", lambda found: _fewer_colours(found[0]), svg)
    svg = re.sub(r'(?<= d=")[^"]+', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]).replace(" \n", " "), svg)
    svg = re.sub(r"(?<=translate\()[^)]+", lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg).replace("DejaVuSans-", "D").replace("STIXGeneral-", "S")
    svg = re.sub(r"\n\s*", "\n", svg).replace("; stroke-linejoin: miter", "").replace("; stroke", ";stroke")
    return re.sub(r"<g>\n(<(?:path|image)[^>]*/>\n)</g>\n", r"\1", svg)


def _fewer_colours(encoded: str) -> str:
    """A PNG in base64, with a palette."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    smaller = io.BytesIO()
    image.quantize(LEVELS + 1, dither=Image.Dither.NONE).save(smaller, format="PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()
