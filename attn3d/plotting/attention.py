"""Figures of attention maps over the anatomy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from attn3d.arguments import one_of
from attn3d.plotting.hanging import BACKGROUND, COLORS, FAINT, PLANES, TEXT
from attn3d.plotting.scene import Scene, show_scale
from attn3d.plotting.words import verbatim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LEAST_HEIGHT = 2.5, 1.5  # inches of a cell; text beside a flat picture needs the height
_HEAD, _SCALE, _GAP, _AXIS = 0.85, 0.75, 0.14, 0.55  # left and right of it, and below a picture or a chart
HEAT = {  # descriptions of the weights that are volumes
    "channel_map": "weighed features\nmean |weight × map|",
    "spatial": "weights of voxels",
    "gate": "weights of voxels\nmean of the channels",
    "axes_map": "weights of voxels\nproduct of axis weights",
    "query": "what the cross sees\nmean of the heads",
}
_DIRECTIONS = ("left to right", "posterior to anterior", "inferior to superior")


def plot_attention_maps(
    image: np.ndarray | torch.Tensor,
    maps: Mapping[str, Mapping[str, torch.Tensor]],
    affine: np.ndarray | None = None,
    *,
    site: str | Sequence[str] | None = None,
    voxels: Sequence[Sequence[int]] | None = None,
    planes: str | Sequence[str] = "axial",
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Plots the result of `attention_maps`: heat maps over the grey anatomy and charts, with one column per site.

    Each heat map has its own color scale, from the 0.5th to the 99.5th percentile of the weights in the volume. It is
    not drawn where weights are 0, for example outside a window, and a dashed line surrounds the rest. Channel weights
    are drawn as bars, weights along axes as curves. The first sample of a batch is shown.

    Args:
        image: the input of the network, (B, C, *S) or (C, *S), of which the first channel is shown, or any other image
            on its grid, *S. With two axes, it is shown as one slice.
        maps: the result of `attention_maps`.
        affine: from voxel indices to millimetres; by default that of a MetaTensor. Without an affine, the axes are
            assumed to be right, anterior, superior with voxels of 1 mm, and sides are not marked.
        site: one or several of the names in ``maps``; by default all with maps to show.
        voxels: the voxels that were passed to `attention_maps`, which are marked by a cross. All slices contain the
            first. The central voxel by default.
        planes: "axial", "coronal", "sagittal", or several of them.
        window: level and width of the displayed intensities; by default nearly the full range.
        title: title of the figure.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: if ``maps`` does not have a dictionary for each site.
        ValueError: if a site or a plane is unknown, there are no planes, samples or maps to show, the image is on
            another grid, or ``voxels`` are not those of the maps.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "cbam", at="encoder")
        >>> x = torch.randn(1, 1, 32, 32, 16)
        >>> figure = attn3d.plot_attention_maps(x, attn3d.attention_maps(net, x), site="encoder:model.0")
    """
    planes = [one_of("planes", plane, PLANES) for plane in ([planes] if isinstance(planes, str) else planes)]
    if not planes:
        raise ValueError(f"`planes` must name at least one of {', '.join(PLANES)}, got {planes!r}")
    if not isinstance(maps, Mapping):
        raise TypeError(f"`maps` must be the result of attention_maps, got {type(maps).__name__}")
    for name, weights in maps.items():
        if not isinstance(weights, Mapping):
            raise TypeError(f"`maps` must have a dictionary for each site, got {type(weights).__name__} for {name!r}")
    if site is None:
        wanted: Sequence[str] = [name for name in maps if maps[name]]
    else:
        wanted = [site] if isinstance(site, str) else site
    sites = {name: _first_sample(maps[one_of("site", name, maps)]) for name in wanted}
    if not any(one.heat or one.charts for one in sites.values()):
        raise ValueError(f"`maps` has nothing to show at {', '.join(wanted) or 'any site'}")

    grids = {heat.shape for one in sites.values() for heat in one.heat.values()}
    grids |= {tuple(map(len, one.charts["axes"])) for one in sites.values() if "axes" in one.charts}
    scene: Any = Scene(image, affine, grids.pop(), window) if grids else None  # other charts need none
    rows = _rows(sites, planes if scene is not None and scene.rank == 3 else ["axial"])
    heights = [max(_LEAST_HEIGHT, _WIDTH * scene.ratio(row.plane)) if row.plane else _LEAST_HEIGHT for row in rows]
    figure, grid = _grid(heights, [row.plane is None for row in rows], list(sites), title)
    queries = {row.query for row in rows} - {None}
    turned = scene.voxels(voxels, count=len(queries)) if scene else []
    for line, row in zip(grid, rows, strict=True):
        if row.plane is None:
            for axes, one in zip(line[1:], sites.values(), strict=True):
                if row.key in one.charts:
                    _prepare(axes)
                    _, draw = _CHARTS[row.key]
                    draw(axes, one.charts[row.key], scene)
            _head(line[0], row.words, line[1:])
            continue
        voxel, cross = turned[row.query or 0], row.query is not None
        scene.show(line[0], row.plane, voxel, cross=cross)
        line[0].set_ylabel(f"{row.words}\n{scene.words(row.plane, voxel)}", color=TEXT, fontsize=10)
        for axes, one in zip(line[1:], sites.values(), strict=True):
            if row.key in one.heat:
                scene.show(axes, row.plane, voxel, heat=one.heat[row.key], cross=cross)
    return figure


class _Site(NamedTuple):
    """The weights of one sample: volumes, in which "query" is followed by an index, and values for charts."""

    heat: dict[str, np.ndarray]
    charts: dict[str, np.ndarray | list[np.ndarray]]


class _Row(NamedTuple):
    """A row: the key of its weights, their description, and of heat maps the plane and the number of the query."""

    key: str
    words: str
    plane: str | None = None
    query: int | None = None


def _rows(sites: Mapping[str, _Site], planes: Sequence[str]) -> list[_Row]:
    """Returns the rows, heat maps first."""
    rows: list[_Row] = []
    for name, words in HEAT.items():
        keys = dict.fromkeys(key for one in sites.values() for key in one.heat if key.startswith(name))
        for index, key in enumerate(keys):
            query = index if name == "query" else None
            rows += [_Row(key, words, plane, query) for plane in planes]
    charted = {key for one in sites.values() for key in one.charts}
    return rows + [_Row(key, words) for key, (words, _) in _CHARTS.items() if key in charted]


def heat_volumes(maps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Returns the weights of the first sample that are volumes, by kind; those of queries are numbered."""
    weights = _arrays(maps)
    heat = {name: weights[name] for name in HEAT if name in weights and name != "query"}
    if "query" in weights:
        heat |= {f"query {index}": row for index, row in enumerate(weights["query"].mean(axis=0))}
    return heat


def _arrays(maps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    if empty := [name for name, value in maps.items() if len(value) == 0]:
        raise ValueError(f"`maps` must have at least one sample, got none in {empty[0]!r}")
    return {name: np.asarray(value[0].detach().float().cpu()) for name, value in maps.items()}


def _first_sample(maps: Mapping[str, torch.Tensor]) -> _Site:
    weights = _arrays(maps)
    plain = ("channel", "added", "branch", "affinity")
    charts: dict[str, Any] = {name: weights[name] for name in plain if name in weights}
    if "context" in weights:
        charts["context"] = weights["context"].mean(axis=0)
    if "axis0" in weights:
        charts["axes"] = [weights[f"axis{axis}"] for axis in range(sum(name[:4] == "axis" for name in weights))]
    return _Site(heat_volumes(maps), charts)


def _grid(
    heights: Sequence[float], charts: Sequence[bool], sites: Sequence[str], title: str
) -> tuple[Figure, list[list[Axes]]]:
    """Returns a black figure and its axes: rows of a head and a cell for each site."""
    from matplotlib.figure import Figure

    gaps = [_AXIS if chart else _GAP for chart in charts]
    names = ["\n".join(textwrap.wrap(name.replace(".", ". "), 34)).replace(". ", ".") for name in sites]
    above = 0.2 + 0.17 * max(name.count("\n") + 1 for name in names) + (0.4 if title else 0)
    pitch = _WIDTH + _SCALE
    width = _HEAD + _WIDTH + len(sites) * pitch + _SCALE
    height = sum(heights) + sum(gaps) + above
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    lefts = [_HEAD, *(_HEAD + pitch - _SCALE / 2 + index * pitch for index in range(len(sites)))]
    grid, bottom = [], height - above
    for tall, gap in zip(heights, gaps, strict=True):
        bottom -= tall
        row = [figure.add_axes((left / width, bottom / height, _WIDTH / width, tall / height)) for left in lefts]
        for axes in row:
            axes.set(xticks=[], yticks=[], facecolor=BACKGROUND)
            axes.spines[:].set_visible(False)
        grid.append(row)
        bottom -= gap
    for axes, name in zip(grid[0][1:], names, strict=True):
        axes.set_title(verbatim(name), color=TEXT, fontsize=10, pad=7)
    if title:
        figure.text(0.5, 1 - 0.12 / height, verbatim(title), color=TEXT, fontsize=13, ha="center", va="top")
    return figure, grid


def _head(axes: Axes, words: str, charts: Sequence[Axes]) -> None:
    """Writes the description of a row of charts, and the legend of its lines below."""
    handles, labels = max((chart.get_legend_handles_labels() for chart in charts), key=lambda pair: len(pair[1]))
    above = 0.5 + 0.09 * sum(label.count("\n") + 1 for label in labels)
    axes.text(0.85, above, words, ha="right", va="center", color=TEXT, fontsize=10, transform=axes.transAxes)
    if labels:
        axes.legend(
            handles, labels, frameon=False, labelcolor="linecolor", fontsize=9, handlelength=0, handletextpad=0,
            loc="upper right", bbox_to_anchor=(0.86, above - 0.14), borderaxespad=0,
        )  # fmt: skip


def _prepare(axes: Axes) -> None:
    """Styles the axes of a chart on a black background."""
    from matplotlib.ticker import MaxNLocator

    axes.spines[["left", "bottom"]].set(visible=True, color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=FAINT, labelsize=8)


def _draw_channels(axes: Axes, weights: np.ndarray, _: Scene | None) -> None:
    axes.stairs(weights, np.arange(len(weights) + 1) - 0.5, fill=True, color=COLORS[1])
    axes.set(xlim=(-0.5, len(weights) - 0.5), ylim=(min(0.0, weights.min()), max(1.0, weights.max() * 1.05)))
    axes.set_xlabel(f"channel; {weights.min():.2g} to {weights.max():.2g}", color=FAINT, fontsize=8)


def _draw_branches(axes: Axes, weights: np.ndarray, _: Scene | None) -> None:
    below = np.zeros(weights.shape[1])
    edges = np.arange(weights.shape[1] + 1) - 0.5
    for index, branch in enumerate(weights):
        axes.stairs(
            below + branch, edges, baseline=below, fill=True, color=COLORS[index % len(COLORS)], label=f"branch {index}"
        )
        below = below + branch
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, below.max()))
    axes.set_xlabel("channel", color=FAINT, fontsize=8)


def _draw_axes(axes: Axes, weights: list[np.ndarray], scene: Scene) -> None:
    for axis, gate in enumerate(weights):
        ras, way = (int(number) for number in scene.hanging.orientation[axis])
        positions = (np.arange(len(gate)) + 0.5) * scene.hanging.spacing[ras]
        label = _DIRECTIONS[ras] if scene.marked else f"axis {axis}"
        axes.plot(positions, gate[::way], color=COLORS[ras], label=label)
    axes.set_xlabel("mm" if scene.marked else "voxel", color=FAINT, fontsize=8)
    axes.margins(x=0)


def _draw_context(axes: Axes, weights: np.ndarray, _: Scene | None) -> None:
    for index, row in enumerate(weights):
        axes.stairs(row, np.arange(len(row) + 1) - 0.5, color=COLORS[index % len(COLORS)], label=f"voxel {index}")
    axes.set_xlabel("token", color=FAINT, fontsize=8)


def _draw_affinity(axes: Axes, weights: np.ndarray, _: Scene | None) -> None:
    show_scale(axes, axes.imshow(weights, cmap="inferno", interpolation="nearest"))
    axes.set_xlabel("channel", color=FAINT, fontsize=8)


_CHARTS: dict[str, tuple[str, Any]] = {  # descriptions and drawing functions
    "channel": ("weights of channels", _draw_channels),
    "added": ("values added\nto channels", _draw_channels),
    "branch": ("weights of branches\nby channel", _draw_branches),
    "axes": ("weights along the axes\nmean of the channels", _draw_axes),
    "context": ("weights of the context\nmean of the heads", _draw_context),
    "affinity": ("weights of channels\nfor channels", _draw_affinity),
}
