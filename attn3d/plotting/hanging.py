"""Slices of a volume in radiological orientation, with true proportions and marked sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Voxel = Sequence[int] | np.ndarray
Extent = tuple[float, float, float, float]  # left, right, bottom and top, in millimetres

COLORS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2")  # Okabe and Ito's
BACKGROUND, TEXT, FAINT = "black", "#f2f2f2", "#9aa3ad"


def color_of(index: int) -> str:
    """Returns the colour of a label by its index: one of `COLORS`, and after these lighter and darker variants."""
    variant, base = divmod(index, len(COLORS))
    if not variant:
        return COLORS[base]
    step = (variant + 1) // 2
    part = 0.8 * int(f"{step:b}"[::-1], 2) / 2 ** step.bit_length()  # 0.4, 0.2, 0.6, 0.1, ..: far from those before
    end = 255 * (variant % 2)
    channels = bytes.fromhex(COLORS[base][1:])
    return "#" + bytes(round(channel + part * (end - channel)) for channel in channels).hex()


class Plane(NamedTuple):
    """The RAS axis normal to a plane, the axes shown from left to right and from bottom to top, and their letters."""

    across: int
    horizontal: int
    vertical: int
    letters: str  # at the left, right, bottom and top


# Radiological convention: the patient's left is shown on the right.
PLANES = {
    "axial": Plane(2, 0, 1, "RLPA"),
    "coronal": Plane(1, 0, 2, "RLIS"),
    "sagittal": Plane(0, 1, 2, "APIS"),
}


class Hanging:
    """Reorients a volume to the axes closest to right, anterior, superior, and crops it to a box.

    Args:
        shape: shape of the volume, in any orientation.
        affine: from voxel indices to millimetres; oblique volumes are shown along the closest axes.

    Raises:
        ValueError: if ``affine`` is not an invertible 4 x 4 matrix.
    """

    def __init__(self, shape: Sequence[int], affine: np.ndarray) -> None:
        import nibabel as nib

        affine = invertible(affine)
        self.orientation = nib.io_orientation(affine)
        self.affine = affine @ nib.orientations.inv_ornt_aff(self.orientation, shape)
        self.spacing = nib.affines.voxel_sizes(self.affine)
        self.shape = tuple(shape[axis] for axis in np.argsort(self.orientation[:, 0]))
        self.low, self.high = np.zeros(3, int), np.array(self.shape)

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Returns the array with its axes reoriented to right, anterior, superior."""
        import nibabel as nib

        return nib.apply_orientation(array, self.orientation)

    def crop(self, mask: np.ndarray, margin: float) -> None:
        """Narrows the box to the bounding box of a reoriented mask and a margin in mm, unless the mask is empty."""
        if mask.any():
            inside = np.argwhere(mask)
            around = np.ceil(np.minimum(margin / self.spacing, self.high)).astype(int)
            self.low = np.maximum(inside.min(axis=0) - around, 0)
            self.high = np.minimum(inside.max(axis=0) + 1 + around, self.high)

    def voxel(self, millimetres: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the reoriented voxel inside the box that is closest to a position in millimetres."""
        import nibabel as nib

        nearest = np.rint(nib.affines.apply_affine(np.linalg.inv(self.affine), millimetres))
        return np.clip(nearest, self.low, self.high - 1).astype(int)

    def millimetres(self, voxel: Voxel) -> np.ndarray:
        """Returns the position of a reoriented voxel in millimetres."""
        import nibabel as nib

        return nib.affines.apply_affine(self.affine, voxel)

    def extent(self, plane: Plane) -> Extent:
        """Returns left, right, bottom and top of a picture in millimetres."""
        width, height = ((self.high - self.low) * self.spacing)[[plane.horizontal, plane.vertical]]
        return 0, width, 0, height

    def cut(self, array: np.ndarray, plane: Plane, voxel: Voxel) -> np.ndarray:
        """Returns the slice of a reoriented array in the plane through a voxel, with rows from the bottom up."""
        shown = array[tuple(slice(low, high) for low, high in zip(self.low, self.high, strict=True))]
        return shown.take(voxel[plane.across] - self.low[plane.across], axis=plane.across).T[:, ::-1]

    def spot(self, plane: Plane, voxel: Voxel) -> tuple[float, float]:
        """Returns the position of the centre of a reoriented voxel in the picture of a plane."""
        x, y = plane.horizontal, plane.vertical
        right = (self.high[x] - voxel[x] - 0.5) * self.spacing[x]
        return right, (voxel[y] - self.low[y] + 0.5) * self.spacing[y]


def invertible(affine: np.ndarray) -> np.ndarray:
    """Returns an affine as an array of floats.

    Raises:
        ValueError: if it is not an invertible 4 x 4 matrix.
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise ValueError(f"`affine` must be an invertible 4 x 4 matrix, got {affine.tolist()}")
    return affine


def contrast(volume: np.ndarray, window: tuple[float, float] | None) -> tuple[float, float]:
    """Returns the intensities shown as black and white, from a window (level, width) or from percentiles.

    Values that are not finite are ignored. Without contrast they are 0 and 1.

    Raises:
        ValueError: if ``window`` is not a level and a positive width.
    """
    if window is not None:
        if len(window) != 2 or not math.isfinite(window[0]) or not 0 < window[1] < math.inf:
            raise ValueError(f"`window` must be a level and a positive width, such as (40, 80), got {window}")
        level, width = window
        return level - width / 2, level + width / 2
    finite = volume[np.isfinite(volume)].astype(float)  # of booleans there is no difference
    if not finite.size or not np.ptp(finite):
        return 0, 1
    low, high = np.percentile(finite[finite > finite.min()], (1, 99.9))
    return (low, high) if low < high else (finite.min(), finite.max())  # equal for two values, as in a mask


def show_scan(axes: Axes, picture: np.ndarray, extent: Extent, limits: tuple[float, float]) -> None:
    """Draws a slice in grey."""
    axes.imshow(
        picture,
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        extent=extent,
        origin="lower",
        interpolation="bilinear",
    )


def show_labels(axes: Axes, labels: np.ndarray, colors: Mapping[int, str], extent: Extent) -> None:
    """Draws labels in semi-transparent colours."""
    from matplotlib.colors import to_rgba

    shades = np.zeros((*labels.shape, 4))
    for value, color in colors.items():
        shades[labels == value] = to_rgba(color, alpha=0.6)
    axes.imshow(shades, extent=extent, origin="lower", interpolation="nearest")


def show_outline(axes: Axes, mask: np.ndarray, extent: Extent) -> None:
    """Draws a dashed line around a region, which is closed at the border of the picture."""
    _, right, _, top = extent
    rows, columns = mask.shape
    x = (np.arange(-1, columns + 1) + 0.5) * right / columns
    y = (np.arange(-1, rows + 1) + 0.5) * top / rows
    x[[0, -1]], y[[0, -1]] = (0.004 * right, 0.996 * right), (0.004 * top, 0.996 * top)
    axes.contour(x, y, np.pad(mask, 1).astype(float), [0.5], colors=TEXT, linestyles="dashed", linewidths=0.9)


def mark_sides(axes: Axes, letters: str) -> None:
    """Writes the sides of the patient at the edges of a picture, and removes ticks."""
    from matplotlib.patheffects import withStroke

    axes.set(xticks=[], yticks=[], facecolor=BACKGROUND)
    axes.spines[:].set_visible(False)
    spots = [(0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center")]
    spots += [(0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top")]
    for letter, (x, y, horizontal, vertical) in zip(letters, spots, strict=False):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            color=FAINT,
            fontsize=11,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground=BACKGROUND)],
        )
