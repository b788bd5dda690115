"""Coordinate attention, arXiv 2103.02907: x times a gate for each axis, from the means over all other axes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, gated, norm_keys
from tests.references.plain import batch_norm, hard_swish, linear, mean, pointwise, relu, sigmoid, volume, voxels


def coordinate_attention(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    reduction=32,
    min_channels=8,
    activation="auto",
):
    channels, sizes = x.shape[1], x.shape[2:]
    middle = max(min_channels, channels // reduction)
    if activation == "auto":
        activation = "hardswish" if variant == "paper" else "relu"
    activate = {"relu": relu, "hardswish": hard_swish}[activation]
    weight, bias, norm_weight, norm_bias, *gate_parameters = parameters
    weight = weight.reshape(middle, channels)

    values = voxels(x)
    means = {}  # (axis, place along it) -> mean over all voxels at that place
    for axis, size in enumerate(sizes):
        for place in range(size):
            means[axis, place] = mean(value for index, value in values.items() if index[axis] == place)

    shared = pointwise(means, weight, bias)
    shared = batch_norm(shared, norm_weight, norm_bias, statistics[0], training)

    gates = {}
    for (axis, place), value in shared.items():
        axis_weight = gate_parameters[2 * axis].reshape(channels, middle)
        axis_bias = gate_parameters[2 * axis + 1]
        gates[axis, place] = sigmoid(linear(activate(value), axis_weight, axis_bias))

    result = {}
    for index, value in values.items():
        for axis, place in enumerate(index):
            value = value * gates[axis, place]
        result[index] = value
    return volume(result)


class PlainCoordinate(nn.Module):
    """A pooling module and a gate for each axis."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        middle = max(8, channels // reduction)
        self.pools = nn.ModuleList(
            nn.AdaptiveAvgPool3d(size) for size in ((None, 1, 1), (1, None, 1), (1, 1, None))
        )  # fmt: skip
        self.shared = nn.Conv3d(channels, middle, 1)
        self.norm = nn.BatchNorm3d(middle)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()
        self.gates = nn.ModuleList(nn.Conv3d(middle, channels, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        deep, high, wide = (pool(x) for pool in self.pools)
        profiles = torch.cat([deep, high.permute(0, 1, 3, 2, 4), wide.permute(0, 1, 4, 3, 2)], 2)
        hidden = self.relu(self.norm(self.shared(profiles)))
        deep, high, wide = torch.split(hidden, x.shape[2:], 2)
        high, wide = high.permute(0, 1, 3, 2, 4), wide.permute(0, 1, 4, 3, 2)
        deep, high, wide = (
            self.sigmoid(gate(profile)) for gate, profile in zip(self.gates, (deep, high, wide), strict=True)
        )
        return x * deep * high * wide


def count(c, n, variant):
    m = max(8, c // 32)
    return c * m + 3 * m + n * (m * c + c)


def permuted(parameters, order):
    """The last parameters are a weight and a bias for each axis."""
    first = len(parameters) - 2 * len(order)
    gates = [parameters[first + 2 * axis : first + 2 * axis + 2] for axis in order]
    return parameters[:first] + list(itertools.chain(*gates))


def without_axis(parameters, axis):
    """The gate of the axis has no counterpart: a large bias saturates it at one."""
    first = 4 + 2 * axis  # after the shared layer and the norm
    parameters[first].zero_()
    parameters[first + 1].fill_(50.0)
    return parameters[:first] + parameters[first + 2 :]


def keys(n):
    of_axes = "".join(f", per_axis.{axis}.weight 8x4x1, per_axis.{axis}.bias 8" for axis in range(n))
    every = f"shared.weight 4x8x1, shared.bias 4, {norm_keys('norm', 4)}{of_axes}"
    return {"default": every, "paper": every}


CASE = Case(
    forms={"default": {"reduction": 2, "min_channels": 3}, "paper": {"reduction": 2, "min_channels": 3} | PAPER},
    reference=coordinate_attention,
    count=count,
    keys=keys,
    plain=PlainCoordinate,
    floor=Floor(3, 4, "all profiles: x; gates: x, y", "all gates: dy, x; input: dy, dx"),
    saved=0.05,
    time=0.6,
    weights={"axis0": (2, 8, 4, 1, 1), "axis1": (2, 8, 1, 3, 1), "axis2": (2, 8, 1, 1, 5)},
    output=gated,
    published=[(64, 2, PAPER, 1_688), (64, 3, PAPER, 2_264), (64, 2, {}, 1_688), (64, 3, {}, 2_264)],
    values=[{"min_channels": 0}, {"activation": "swish"}],
    drawn={
        "reduction": REDUCTIONS,
        "min_channels": [1, 3, 8],
        "activation": ["auto", "relu", "hardswish"],
        "norm": NORMS,
    },
    permuted=permuted,
    collapses="in evaluation",  # in training, the statistics of the norm include the removed axis
    without_axis=without_axis,
)
