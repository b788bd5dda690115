"""Draws which voxels each pattern attends to: ``python docs/pattern_figures.py``."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import attn3d
from attn3d.attention import Pattern

PICTURE = Path(__file__).parent / "figures" / "patterns.png"
# The sizes of the volume and the query voxel: slices, rows, columns.
VOLUME, QUERY = (4, 8, 8), (1, 3, 4)
COLOURS = ["#eaeef2", "#fb9f57", "#8fd0cb", "#cf222e"]  # not seen, seen, seen as part of a mean, the voxel itself
PANELS = {
    "Global()": (attn3d.Global(), "all"),
    "Window((2, 4, 4))": (attn3d.Window((2, 4, 4)), "its window"),
    "Window((2, 4, 4), shift=True)": (attn3d.Window((2, 4, 4), shift=True), "moved by half"),
    "Grid((2, 4, 4))": (attn3d.Grid((2, 4, 4)), "a sparse grid"),
    "Axial()": (attn3d.Axial(), "lines through it"),
    "Neighborhood((3, 5, 5))": (attn3d.Neighborhood((3, 5, 5)), "those around it"),
    "Neighborhood(3, (1, 2, 2))": (attn3d.Neighborhood(3, (1, 2, 2)), "every second"),
    "PooledKeys((1, 2, 2))": (attn3d.PooledKeys((1, 2, 2)), "one of each cell"),
}


def patterns() -> Figure:
    """A figure with each pattern on a small volume, slice by slice."""
    figure, panels = pyplot.subplots(2, 4, figsize=(10.6, 4.4), layout="constrained")
    for axes, (name, (pattern, words)) in zip(panels.flat, PANELS.items(), strict=True):
        row = weights(pattern, torch.tensor([np.ravel_multi_index(QUERY, VOLUME)]))[0]
        kinds = np.where((row > 0).numpy(), 1 if row.shape == VOLUME else 2, 0)
        for axis, (whole, size) in enumerate(zip(VOLUME, row.shape, strict=True)):
            kinds = kinds.repeat(whole // size, axis)  # a pooled key represents several voxels
        kinds[QUERY] = 3
        slices = np.pad(kinds, ((0, 0), (0, 1), (0, 1)), constant_values=-1)  # a gap between slices
        sheet = np.ma.masked_less(np.vstack([np.hstack(slices[:2]), np.hstack(slices[2:])])[:-1, :-1], 0)
        axes.pcolormesh(sheet, cmap=ListedColormap(COLOURS), vmin=0, vmax=3, edgecolors="white", linewidth=0.6)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.axis("off")
        count, of = int((row > 0).sum()), "voxels" if row.shape == VOLUME else "means"
        axes.set_title(f"{name}\n{words}: {count} {of}", fontsize=9.5, loc="left")
    note = "{} slices × {} rows × {} columns; in colour: weights above 0".format(*VOLUME)
    figure.suptitle(f"Patterns: what the red voxel sees\n{note}", fontsize=11)
    return figure


def weights(pattern: Pattern, queries: torch.Tensor) -> torch.Tensor:
    """The attention weights of query voxels, (Q, *S of the keys)."""
    torch.manual_seed(0)
    attention = attn3d.MultiHeadSelfAttention(3, 4, num_heads=1, pattern=pattern)
    with torch.no_grad():
        return attention.attention_weights(torch.randn(1, 4, *VOLUME), queries)["query"][0, 0]


if __name__ == "__main__":
    patterns().savefig(PICTURE, dpi=120)
