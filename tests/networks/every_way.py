"""A small network with every way of attaching attention, for tests that are too slow for all networks."""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.layers.conv import convolution
from attn3d.networks import (
    concatenated,
    first_argument,
    items,
    joined,
    register_block,
    register_sites,
    second_argument,
)

CHANNELS = 8
AT = ("encoder", "decoder", "bottleneck", "skip", "block", "residual")


def maps(output: Any) -> list[Tensor]:
    """The tensors of an output of any structure."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output if part is not None for tensor in maps(part)]


class Residual(nn.Module):
    """A residual block with a branch, and a convolution for selective kernels."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(convolution(dims)(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Beside(nn.Module):
    """A skip connection that concatenates."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.inner = convolution(dims)(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class Levels(nn.Module):
    """An encoder that returns a list."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.one, self.two = convolution(dims)(CHANNELS, CHANNELS, 1), convolution(dims)(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.one(x)
        return [y, self.two(torch.relu(y))]


class Merge(nn.Module):
    """A decoder with a skip."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.mix = convolution(dims)(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.mix(torch.cat([x, skip], 1))


class MergeOptional(Merge):
    """A decoder whose skip may be None."""

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        return self.mix(torch.cat([x, x if skip is None else skip], 1))


class EveryWay(nn.Module):
    """A network whose sites need every kind of hook.

    Only inline sums, which cannot be scripted, are missing; SegResNet has those.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(dims)(1, CHANNELS, 3, padding=1), nn.ReLU())
        self.block = Residual(dims)
        self.joint = Beside(dims)
        self.narrow = convolution(dims)(2 * CHANNELS, CHANNELS, 1)
        self.levels = Levels(dims)
        self.merge = Merge(dims)
        self.optional = MergeOptional(dims)
        self.last = MergeOptional(dims)
        self.head = convolution(dims)(CHANNELS, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        levels = self.levels(self.narrow(self.joint(x)))
        x = self.optional(self.merge(levels[1], levels[0]), x)
        return self.head(self.last(x, None))


register_block(Residual, "branch")
register_sites(
    EveryWay,
    {
        "encoder": ["stem", "block"],
        "bottleneck": [first_argument("merge")],
        "decoder": ["merge", "optional", "last"],
        "skip": [
            joined("joint"),
            concatenated("narrow"),
            *items("levels", 2),
            second_argument("merge"),
            second_argument("optional"),
        ],
    },
)
