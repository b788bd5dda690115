"""Position biases, which are added to a score and depend on the distance from query to key."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.attention.groups import flat_indices, outer
from attn3d.capture import no_autocast

POSITION_BIASES = (None, "axis", "joint", "continuous")


class ContinuousBias(nn.Module):
    """A small network that computes the bias of every offset, for windows of any size (arXiv 2111.09883, section 3.3).

    B = 16 sigmoid(W_2 relu(W_1 o + b_1)), o = sign(offset) log(1 + |offset|) along every axis, W_1: n -> 512,
    W_2: 512 -> H.

    Args:
        spatial_dims: n.
        heads: H.
    """

    def __init__(self, spatial_dims: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(spatial_dims, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))

    def forward(self, sizes: Sequence[int]) -> Tensor:
        """Returns the bias of every offset in a window of these sizes, (H, product of 2 size - 1)."""
        weight: Any = self.layers[0].weight
        with no_autocast(weight):
            along = [torch.arange(1 - size, size, device=weight.device) for size in sizes]
            offsets = torch.stack([axis.flatten() for axis in torch.meshgrid(along, indexing="ij")], 1)
            offsets = offsets.to(torch.promote_types(weight.dtype, torch.float32))
            offsets = (offsets.sign() * offsets.abs().log1p()).to(weight.dtype)
            return 16.0 * self.layers(offsets).sigmoid().transpose(0, 1)


def entries(kind: str, sizes: Sequence[int]) -> int:
    """Returns the number of bias values per head for windows of these sizes."""
    lengths = [2 * size - 1 for size in sizes]
    return sum(lengths) if kind == "axis" else math.prod(lengths)


def look_up(table: Tensor, kind: str, sizes: Sequence[int], distances: list[Tensor], shared: int = 0) -> Tensor:
    """Looks up the bias of all combinations of the distances along the axes.

    Args:
        table: bias values, (H, `entries`). For "axis", the values of all axes, concatenated; the bias is their sum
            over the axes. Otherwise one value for every offset.
        kind: "axis", "joint" or "continuous".
        sizes: of the window.
        distances: integer tensors, one for every axis, in steps of the pattern.
        shared: the number of leading axes that all distances have in common.

    Returns:
        (H, shared axes, products of the remaining axes).
    """
    lengths = [2 * size - 1 for size in sizes]
    # Distances beyond the window are clamped: those pairs are masked anyway.
    indices = [distance.clamp(1 - size, size - 1) + size - 1 for distance, size in zip(distances, sizes, strict=True)]
    if kind == "axis":
        tables = zip(table.split(lengths, 1), indices, strict=True)
        return outer(operator.add, [axis_table[:, index] for axis_table, index in tables], 1 + shared)
    return table[:, flat_indices(indices, lengths, shared)]
