"""Figures of scans and their segmentations side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attn3d.arguments import nonnegative_number, positive_integer
from attn3d.plotting.hanging import (
    BACKGROUND,
    PLANES,
    TEXT,
    Hanging,
    Plane,
    Voxel,
    color_of,
    contrast,
    mark_sides,
    show_labels,
    show_outline,
    show_scan,
)
from attn3d.plotting.words import LINE, in_millilitres, legend_below, verbatim, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MILLIMETRES_PER_INCH = 52.0
_WIDTHS = (2.2, 4.0)  # inches: small pictures are enlarged to at least the first and at most the second, to fit text
_LEAST_HEIGHT = 1.5  # inches of a row, for the text beside it


def plot_segmentation(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    names: Mapping[int, str],
    affine: np.ndarray,
    *,
    center: Sequence[float] | None = None,
    outlines: Mapping[str, np.ndarray] | None = None,
    margin: float = 10.0,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Plots a scan and its segmentations side by side, in an axial, a coronal and a sagittal plane.

    The displayed region depends only on the first segmentation, which should be the reference.

    Args:
        image: intensities, (X, Y, Z), in any orientation.
        segmentations: labels of each further column, by title.
        names: names of the label values; values of the same name have the same colour. The legend has those shown.
        affine: from voxel indices to millimetres; oblique volumes are shown along the closest axes.
        center: intersection of the planes in millimetres; by default the centre of the displayed region.
        outlines: masks of regions to draw as dashed lines, by name.
        margin: margin in mm around the labels of the first segmentation; if it is empty, the whole scan is shown.
        window: level and width of the displayed intensities, such as (40, 80) HU for blood in a brain; by default
            nearly the full range.
        title: title of the figure.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: if ``margin`` is not a number.
        ValueError: if the image does not have three axes or has no voxel, an array is not of its shape, ``margin`` is
            negative, or ``window`` is not a level and a positive width.
    """
    nonnegative_number("margin", margin)
    outlines = outlines or {}
    _check(image, {**segmentations, **outlines})
    hanging = Hanging(image.shape, affine)
    volume = hanging.turn(image)
    columns = {name: hanging.turn(labels) for name, labels in segmentations.items()}
    regions = {name: hanging.turn(mask) for name, mask in outlines.items()}
    hanging.crop(next(iter(columns.values()), np.zeros(1)) != 0, margin)
    voxel = (hanging.low + hanging.high) // 2 if center is None else hanging.voxel(center)
    at = hanging.millimetres(voxel)
    rows = [
        (plane, voxel, f"{name}\n{'xyz'[plane.across]} = {at[plane.across]:.0f} mm") for name, plane in PLANES.items()
    ]
    return _draw(hanging, volume, columns, regions, rows, names, contrast(volume, window), (0.4, 1.3), title)


def plot_lesions(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    names: Mapping[int, str],
    affine: np.ndarray,
    *,
    lesions: int = 1,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Plots a scan and its segmentations side by side, in the axial slices through the largest lesions.

    A lesion is a connected component (26 neighbours) of the first segmentation, which should be the reference, or of
    the next one if it is empty. The slice with most voxels of the lesion is shown.

    Args:
        image: intensities, (X, Y, Z), in any orientation.
        segmentations: labels of each further column, by title.
        names: names of the label values; values of the same name have the same colour. The legend has those shown.
        affine: from voxel indices to millimetres; oblique volumes are shown along the closest axes.
        lesions: largest number of lesions, one per row, the largest lesion first.
        window: level and width of the displayed intensities, such as (40, 80) HU for blood in a brain; by default
            nearly the full range.
        title: title of the figure.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: if ``lesions`` is not an integer.
        ValueError: if the image does not have three axes or has no voxel, an array is not of its shape, ``lesions`` is
            below 1, or ``window`` is not a level and a positive width.
    """
    positive_integer("lesions", lesions)
    _check(image, segmentations)
    hanging, plane = Hanging(image.shape, affine), PLANES["axial"]
    volume = hanging.turn(image)
    columns = {name: hanging.turn(labels) for name, labels in segmentations.items()}
    limits = contrast(volume, window)
    hanging.crop(functools.reduce(np.logical_or, columns.values(), volume > limits[0]), margin=5.0)
    source, found = "", [(hanging.shape[plane.across] // 2, 0)]
    for name, labels in columns.items():
        components = _largest(labels != 0, lesions)
        if components:
            source, found = name, components
            break
    millilitres = abs(np.linalg.det(hanging.affine[:3, :3])) / 1000
    rows = []
    for index, voxels in found:
        voxel = (0, 0, int(np.clip(index, hanging.low[2], hanging.high[2] - 1)))
        what = (
            f"{verbatim(source)}\nlesion of {in_millilitres(voxels * millilitres)} ml" if voxels else "nothing labelled"
        )
        rows.append((plane, voxel, f"z = {hanging.millimetres(voxel)[2]:.0f} mm\n{what}"))
    return _draw(hanging, volume, columns, {}, rows, names, limits, (0.7, 0.9), title)


def _draw(
    hanging: Hanging,
    volume: np.ndarray,
    columns: Mapping[str, np.ndarray],
    regions: Mapping[str, np.ndarray],
    rows: Sequence[tuple[Plane, Voxel, str]],
    names: Mapping[int, str],
    limits: tuple[float, float],
    spare: tuple[float, float],
    title: str,
) -> Figure:
    """Draws a scan and its labels side by side. ``rows`` are planes, a voxel in each, and the words beside it."""
    from matplotlib.lines import Line2D

    extents = [hanging.extent(plane) for plane, *_ in rows]
    figure, grid = _grid(extents, 1 + len(columns), spare)
    colors, shown = label_colors(names), set()
    for pictures, (plane, voxel, words), extent in zip(grid, rows, extents, strict=True):
        scan = hanging.cut(volume, plane, voxel)
        outlines = [hanging.cut(mask, plane, voxel) for mask in regions.values()]
        for axes, labels in zip(pictures, [None, *columns.values()], strict=True):
            show_scan(axes, scan, extent, limits)
            if labels is not None:
                cut = hanging.cut(labels, plane, voxel)
                show_labels(axes, cut, colors, extent)
                shown.update(np.unique(cut).tolist())
            for outline in outlines:
                show_outline(axes, outline, extent)
            mark_sides(axes, plane.letters)
        pictures[0].set_ylabel(words, color=TEXT, fontsize=11)
    present = {names[value]: color for value, color in colors.items() if value in shown}
    lines = [Line2D([], [], color=TEXT, linestyle=(0, (4, 3)), linewidth=1, label=name) for name in regions]
    _name(figure, grid[0], ["scan", *columns], present, lines, title)
    return figure


def _check(image: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    if image.ndim != 3 or not image.size:
        raise ValueError(f"`image` must be (X, Y, Z) with at least one voxel, got shape {tuple(image.shape)}")
    for name, array in arrays.items():
        if array.shape != image.shape:
            raise ValueError(f"{name!r} must have the image's shape {image.shape}, got {array.shape}")


def _largest(mask: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns the slice with most voxels, and the number of voxels, of the largest components of a mask."""
    from scipy import ndimage

    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    largest = np.argsort(-sizes, kind="stable")[:count] + 1
    return [(int((components == label).sum(axis=(0, 1)).argmax()), int(sizes[label - 1])) for label in largest]


def label_colors(names: Mapping[int, str]) -> dict[int, str]:
    """Returns a colour for each label value. Values of the same name have the same one, such as those of a region."""
    colors = {name: color_of(index) for index, name in enumerate(dict.fromkeys(names.values()))}
    return {value: colors[name] for value, name in names.items()}


def _grid(extents: Sequence[Sequence[float]], columns: int, spare: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes, a row of pictures for each extent, with ``spare`` inches beside and above."""
    from matplotlib.figure import Figure

    sizes = np.array([[extent[1], extent[3]] for extent in extents]) / _MILLIMETRES_PER_INCH
    sizes *= max(1.0, min(_WIDTHS[0] / sizes[:, 0].min(), _WIDTHS[1] / sizes[:, 0].max()))
    width, heights = max(sizes[:, 0].max(), _WIDTHS[0]), np.maximum(sizes[:, 1], _LEAST_HEIGHT)
    inches = (float(columns * width + spare[0]), float(heights.sum() + spare[1]))
    figure = Figure(figsize=inches, facecolor=BACKGROUND, layout="constrained")
    return figure, figure.subplots(len(extents), columns, height_ratios=heights.tolist(), squeeze=False)


def _name(
    figure: Figure, axes: np.ndarray, columns: Sequence[str], labels: Mapping[str, str], lines: list[Any], title: str
) -> None:
    """Adds the titles of the columns and of the figure, and the legend."""
    from matplotlib.patches import Patch

    width = figure.get_figwidth()
    heads = [wrapped(name, width / len(columns), 14) for name in columns]
    for column, head in zip(axes, heads, strict=True):
        column.set_title(head, color=TEXT, fontsize=14, pad=8)
    handles = [Patch(facecolor=color, label=name) for name, color in labels.items()] + lines
    rows = legend_below(figure, handles, TEXT, 12)
    heading = wrapped(title, width, 15)
    if title:
        figure.suptitle(heading, color=TEXT, fontsize=15)
    # `_grid` has room for a line of each
    more = 12 * max(0, rows - 1) + 14 * max(head.count("\n") for head in heads) + 15 * heading.count("\n")
    figure.set_figheight(figure.get_figheight() + more * LINE)
