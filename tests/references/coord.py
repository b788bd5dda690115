"""Coordinate attention, arXiv 2103.02907: x times a gate per axis, from the means over all others."""

from __future__ import annotations

from tests.references.plain import (
    batch_norm,
    hard_swish,
    linear,
    mean,
    pointwise,
    relu,
    sigmoid,
    volume,
    voxels,
)


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
