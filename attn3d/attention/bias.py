"""Position biases: what is added to a score for the distance from query to key."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.attention.groups import outer
from attn3d.capture import no_autocast

POSITION_BIASES = (None, "axis", "joint", "continuous")


class ContinuousBias(nn.Module):
    """The bias of every offset from a small network, for windows of any size (arXiv 2111.09883, section 3.3).

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
        """A value for every offset in a window of these sizes, (H, product of 2 size - 1)."""
        weight: Any = self.layers[0].weight
        with no_autocast(weight):
            along = [torch.arange(1 - size, size, device=weight.device) for size in sizes]
            offsets = torch.stack([axis.flatten() for axis in torch.meshgrid(along, indexing="ij")], 1)
            offsets = offsets.to(torch.promote_types(weight.dtype, torch.float32))
            offsets = (offsets.sign() * offsets.abs().log1p()).to(weight.dtype)
            return 16.0 * self.layers(offsets).sigmoid().transpose(0, 1)


def entries(kind: str, sizes: Sequence[int]) -> int:
    """How many values a head has for windows of these sizes."""
    lengths = [2 * size - 1 for size in sizes]
    return sum(lengths) if kind == "axis" else math.prod(lengths)


def look_up(table: Tensor, kind: str, sizes: Sequence[int], distances: list[Tensor], shared: int = 0) -> Tensor:
    """The bias at distances along every axis, (H, products of their axes but for those shared).

    Args:
        table: (H, `entries`). "axis": those of all axes one after the other, which add up; else of every offset.
        kind: "axis", "joint" or "continuous".
        sizes: of the window.
        distances: of every axis, in steps of the pattern.
        shared: how many axes in front the distances have in common.
    """
    lengths = [2 * size - 1 for size in sizes]
    found = [
        distance.clamp(1 - size, size - 1) + size - 1  # what lies further is not seen
        for distance, size in zip(distances, sizes, strict=True)
    ]
    if kind == "axis":
        parts = [of_axis[:, along] for of_axis, along in zip(table.split(lengths, 1), found, strict=True)]
        return functools.reduce(lambda one, other: outer(torch.add, one, other, 1 + shared), parts)
    entry = found[0]
    for along, length in zip(found[1:], lengths[1:], strict=True):
        entry = outer(torch.add, entry * length, along, shared)
    return table[:, entry]
