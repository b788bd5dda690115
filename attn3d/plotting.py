"""Pictures of volumes, as a radiologist would hang them: three planes, true proportions, sides marked.

Matplotlib and nibabel come with the extra ``segmentation`` and are imported when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2")  # Okabe and Ito's
_BACKGROUND, _TEXT, _FAINT = "black", "#f2f2f2", "#9aa3ad"
_MILLIMETRES_PER_INCH = 52.0

# Plane: the RAS axis across it, the axis shown from left to right, the one from bottom to top, and the letters at
# the left, right, bottom and top. Seen from the feet and from the front, so that the patient's left is at the right.
_PLANES = {
    "axial": (2, 0, 1, "RLPA"),
    "coronal": (1, 0, 2, "RLIS"),
    "sagittal": (0, 1, 2, "APIS"),
}


def plot_segmentation(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    names: Mapping[int, str],
    affine: np.ndarray,
    *,
    center: Sequence[float] | None = None,
    outlines: Mapping[str, np.ndarray] | None = None,
    margin: float = 10.0,
    title: str = "",
) -> Figure:
    """A scan and its segmentations side by side, in an axial, a coronal and a sagittal plane.

    Args:
        image: intensities, (X, Y, Z), in any orientation.
        segmentations: title and labels of each column beside the scan.
        names: label values, and what the legend calls them.
        affine: voxel indices to millimetres; an oblique one is shown along the nearest axes.
        center: where the planes cross, in the affine's millimetres. By default in the middle of what is labelled.
        outlines: legend and mask of regions to draw as a dashed line.
        margin: millimetres shown around what is labelled.
        title: of the figure.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: when an array is not of the image's shape.
    """
    import nibabel as nib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    outlines = outlines or {}
    for name, array in (segmentations | outlines).items():
        if array.shape != image.shape:
            raise ValueError(f"{name!r} must have the image's shape {image.shape}, got {array.shape}")

    orientation = nib.io_orientation(affine)
    to_ras = affine @ nib.orientations.inv_ornt_aff(orientation, image.shape)
    spacing = nib.affines.voxel_sizes(to_ras)
    volume = nib.apply_orientation(image, orientation)
    columns = {name: nib.apply_orientation(labels, orientation) for name, labels in segmentations.items()}
    regions = {name: nib.apply_orientation(mask, orientation) for name, mask in outlines.items()}

    labelled = np.any([labels != 0 for labels in columns.values()], axis=0)
    low, high = _bounds(labelled, margin / spacing)
    if center is None:
        voxel = (low + high) // 2
    else:
        voxel = np.clip(np.rint(nib.affines.apply_affine(np.linalg.inv(to_ras), center)), low, high - 1).astype(int)
    place = nib.affines.apply_affine(to_ras, voxel)
    window = np.percentile(volume[volume > volume.min()], (1, 99.9)) if np.ptp(volume) else (0, 1)

    extent = (high - low) * spacing
    width = max(extent[horizontal] for _, horizontal, _, _ in _PLANES.values())
    heights = [extent[vertical] for _, _, vertical, _ in _PLANES.values()]
    inches = np.array([(1 + len(columns)) * width, sum(heights)]) / _MILLIMETRES_PER_INCH + (0.4, 1.3)
    figure = Figure(figsize=inches, facecolor=_BACKGROUND, layout="constrained")
    grid = figure.subplots(3, 1 + len(columns), height_ratios=heights, squeeze=False)
    colors = {value: COLORS[index % len(COLORS)] for index, value in enumerate(names)}

    for row, (plane, (across, horizontal, vertical, letters)) in zip(grid, _PLANES.items(), strict=True):

        def cut(array: np.ndarray, across: int = across, horizontal: int = horizontal) -> np.ndarray:
            view = array[tuple(slice(*pair) for pair in zip(low, high, strict=True))]
            return view.take(voxel[across] - low[across], axis=across).T[:, ::-1]

        size = (0, extent[horizontal], 0, extent[vertical])
        for axes, name in zip(row, ["scan", *columns], strict=True):
            axes.imshow(
                cut(volume),
                cmap="gray",
                vmin=window[0],
                vmax=window[1],
                extent=size,
                origin="lower",
                interpolation="bilinear",
            )
            if name in columns:
                _overlay(axes, cut(columns[name]), colors, size)
            for mask in regions.values():
                _outline(axes, cut(mask), size)
            _mark(axes, letters)
        row[0].set_ylabel(f"{plane}\n{'xyz'[across]} = {place[across]:.0f} mm", color=_TEXT, fontsize=12)
    for axes, name in zip(grid[0], ["scan", *columns], strict=True):
        axes.set_title(name, color=_TEXT, fontsize=14, pad=8)

    handles: list[Any] = [Patch(facecolor=colors[value], label=name) for value, name in names.items()]
    handles += [Line2D([], [], color=_TEXT, linestyle=(0, (4, 3)), linewidth=1, label=name) for name in regions]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=_TEXT, fontsize=12
    )
    if title:
        figure.suptitle(title, color=_TEXT, fontsize=15)
    return figure


def _bounds(mask: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last index of what is in the mask, with a margin; all of it where nothing is."""
    shape = np.array(mask.shape)
    if not mask.any():
        return np.zeros(3, int), shape
    inside = np.argwhere(mask)
    margin = np.ceil(margin).astype(int)
    return np.maximum(inside.min(axis=0) - margin, 0), np.minimum(inside.max(axis=0) + 1 + margin, shape)


def _overlay(axes: Axes, labels: np.ndarray, colors: Mapping[int, str], extent: tuple[float, ...]) -> None:
    """Labels in colour, the scan shining through."""
    from matplotlib.colors import to_rgba

    shades = np.zeros((*labels.shape, 4))
    for value, color in colors.items():
        shades[labels == value] = to_rgba(color, alpha=0.6)
    axes.imshow(shades, extent=extent, origin="lower", interpolation="nearest")


def _outline(axes: Axes, mask: np.ndarray, extent: tuple[float, ...]) -> None:
    """A dashed line around a region, closed where it meets the border of the picture."""
    _, right, _, top = extent
    rows, columns = mask.shape
    x = (np.arange(-1, columns + 1) + 0.5) * right / columns
    y = (np.arange(-1, rows + 1) + 0.5) * top / rows
    x[[0, -1]], y[[0, -1]] = (0.004 * right, 0.996 * right), (0.004 * top, 0.996 * top)
    axes.contour(x, y, np.pad(mask, 1).astype(float), [0.5], colors=_TEXT, linestyles="dashed", linewidths=0.9)


def _mark(axes: Axes, letters: str) -> None:
    """The sides of the patient at the edges of a picture, and no ticks."""
    from matplotlib.patheffects import withStroke

    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    spots = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"))
    spots += ((0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top"))
    for letter, (x, y, horizontal, vertical) in zip(letters, spots, strict=True):
        axes.text(
            *(x, y, letter),
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            color=_FAINT,
            fontsize=11,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )
