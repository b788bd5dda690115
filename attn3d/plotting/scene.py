"""Heat maps over a slice of the anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attn3d.arguments import voxels_on
from attn3d.plotting.hanging import BACKGROUND, FAINT, PLANES, Hanging, contrast, mark_sides, show_outline, show_scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.image import AxesImage


class Scene:
    """The anatomy behind heat maps. Images with one or two axes are extended to three.

    Args:
        image: (B, C, *S), (C, *S) or *S, of which the first sample's first channel is shown.
        affine: from voxel indices to millimetres; by default the affine of the image, if it has one.
        grid: S of the maps.
        window: level and width of the displayed intensities; by default nearly the full range.
    """

    def __init__(
        self,
        image: Any,
        affine: np.ndarray | None,
        grid: tuple[int, ...],
        window: tuple[float, float] | None,
    ) -> None:
        self.rank, self.grid = len(grid), grid + (1,) * (3 - len(grid))
        self.marked = affine is not None or hasattr(image, "affine")
        if self.marked:
            affine = np.asarray(image.affine if affine is None else affine)
            affine = affine.reshape(-1, *affine.shape[-2:])[0]  # of a batch
        image = np.asarray(image.detach().float().cpu() if isinstance(image, torch.Tensor) else image)
        anatomy = image.reshape(-1, *image.shape[max(0, image.ndim - self.rank) :])[0]
        if anatomy.shape != grid:
            raise ValueError(f"`image` must lie on the grid of the maps, {grid}, got {image.shape}")
        self.affine = np.eye(4) if affine is None else affine
        self.hanging = Hanging(self.grid, self.affine)
        self.volume = self.hanging.turn(anatomy.reshape(self.grid))
        self.limits = contrast(self.volume, window)

    def voxels(self, voxels: Sequence[Sequence[int]] | None, count: int) -> list[np.ndarray]:
        """Returns the given voxels, or the central one, in the reoriented volume."""
        import nibabel as nib

        given = voxels_on(self.grid[: self.rank], voxels)
        if 0 < count != len(given):
            raise ValueError(f"`voxels` must be the {count} passed to attention_maps, got {given}")
        padded = [(*voxel, 0, 0)[:3] for voxel in given]
        return [self.hanging.voxel(nib.affines.apply_affine(self.affine, voxel)) for voxel in padded]

    def ratio(self, plane: str) -> float:
        """Returns the height of a picture divided by its width."""
        _, width, _, height = self.hanging.extent(PLANES[plane])
        return height / width

    def words(self, plane: str, voxel: np.ndarray) -> str:
        """Returns the name of a plane, with its position if an affine is known."""
        if not self.marked:
            return plane
        across = PLANES[plane].across
        return f"{plane}, {'xyz'[across]} = {self.hanging.millimetres(voxel)[across]:.0f} mm"

    def show(
        self, axes: Axes, plane: str, voxel: np.ndarray, *, heat: np.ndarray | None = None, cross: bool = False
    ) -> None:
        """Draws a slice, optionally with a heat map and its color scale, and with a cross at the voxel."""
        extent = self.hanging.extent(PLANES[plane])
        low, high = self.limits
        dimmed = high if heat is None else low + 1.7 * (high - low)  # so that heat is visible on bright anatomy
        show_scan(axes, self.hanging.cut(self.volume, PLANES[plane], voxel), extent, (low, dimmed))
        mark_sides(axes, PLANES[plane].letters if self.marked else "")
        if heat is not None:
            low, high = heat_limits(heat)
            heat = self.hanging.cut(self.hanging.turn(heat.reshape(self.grid)), PLANES[plane], voxel)
            there = heat != 0
            if there.any() and not there.all():
                show_outline(axes, there, extent)
            picture = axes.imshow(
                heat,
                cmap=heat_colors(),
                vmin=low,
                vmax=high,
                extent=extent,
                origin="lower",
                interpolation="bilinear",
            )
            show_scale(axes, picture)
        if cross:
            x, y = self.hanging.spot(PLANES[plane], voxel)
            for color, width in (("black", 3.5), ("#7ee7ff", 1.5)):
                axes.plot(x, y, "+", color=color, markersize=13, markeredgewidth=width)


def heat_limits(heat: np.ndarray) -> tuple[float, float]:
    """Returns the weights shown transparent and bright: percentiles 0.5 and 99.5 of those that are not 0."""
    there = heat != 0
    low, high = (float(one) for one in np.percentile(heat[there] if there.any() else heat, (0.5, 99.5)))
    if high - low <= 1e-6 * abs(low):  # the same everywhere
        high = low + 0.1 * (abs(low) or 1)
    return low, high


def heat_colors() -> LinearSegmentedColormap:
    """Returns a colormap from transparent to bright, which shows the anatomy where weights are low."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    shades = colormaps["inferno"](np.linspace(0.2, 1, 64))
    shades[:, 3] = np.linspace(0, 0.85, 64)
    return LinearSegmentedColormap.from_list("heat", shades)


def show_scale(axes: Axes, picture: AxesImage) -> None:
    """Draws a color bar beside a picture, as high as its cell, which is higher than a flat picture."""
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import blended_transform_factory

    cell = axes.get_position(original=True)
    beside = axes.inset_axes(
        (1.03, cell.y0 + 0.04 * cell.height, 0.045, 0.84 * cell.height),
        transform=blended_transform_factory(axes.transAxes, axes.figure.transFigure),
        facecolor=BACKGROUND,
    )
    bar: Any = axes.figure.colorbar(picture, cax=beside, extend="both")
    bar.locator = MaxNLocator(4)
    bar.formatter.set_powerlimits((-2, 4))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelsize=8, length=2)
    bar.ax.yaxis.get_offset_text().set(color=FAINT, fontsize=8, ha="left", x=0.0)
