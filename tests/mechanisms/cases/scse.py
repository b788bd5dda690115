"""Concurrent squeeze-and-excitation, arXiv 1803.02579: x sigma(W2 relu(W1 GAP x)) and x sigma(w x + b), max or sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn3d import SCSE
from tests.mechanisms.case import REDUCTIONS, Case, Floor
from tests.references.plain import linear, maximum, mean, pointwise, relu, sigmoid, volume, voxels


def concurrent(x, parameters, statistics, training, *, reduction=2, mode="max"):
    channels = x.shape[1]
    hidden = max(channels // reduction, min(channels, 4))
    weight1, bias1, weight2, bias2, weight, bias = parameters
    values = voxels(x)
    squeezed = relu(linear(mean(values.values()), weight1.reshape(hidden, channels), bias1))
    channel = sigmoid(linear(squeezed, weight2.reshape(channels, hidden), bias2))
    spatial = {index: sigmoid(score) for index, score in pointwise(values, weight.reshape(1, channels), bias).items()}
    result = {}
    for index, value in values.items():
        both = [value * channel, value * spatial[index]]
        result[index] = maximum(both) if mode == "max" else both[0] + both[1]
    return volume(result)


class PlainSCSE(nn.Module):
    """The maximum of two gated maps."""

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())
        self.spatial = nn.Sequential(nn.Conv3d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        by_channel = x * self.channel(self.pool(x).flatten(1))[:, :, None, None, None].expand_as(x)
        return torch.max(by_channel, x * self.spatial(x))


def count(c, n, variant):
    h = max(c // 2, min(c, 4))
    return 2 * c * h + c + h + c + 1


def keys(n):
    layers = "squeeze.weight 4x8, squeeze.bias 4, excite.weight 8x4, excite.bias 8"
    every = f"{layers}, score.weight 1x8{n * 'x1'}, score.bias 1"
    return {"default": every, "sum": every}


def both_modes_follow_from_the_reported_gates():
    """The maximum is that of products: where x is negative, the larger product has the smaller gate."""
    x = torch.randn(2, 6, 4, 2, 3, dtype=torch.float64)
    for mode, join in (("max", torch.maximum), ("sum", torch.add)):
        module = SCSE(3, 6, mode=mode).double()
        weights = module.attention_weights(x)
        torch.testing.assert_close(module(x), join(x * weights["channel"], x * weights["spatial"]))


def the_spatial_gate_has_one_channel():
    """In one widely used implementation it has C channels; another has no sigmoid."""
    spatial = SCSE(3, 6).attention_weights(torch.randn(2, 6, 4, 2, 3))["spatial"]
    assert spatial.shape == (2, 1, 4, 2, 3)
    assert ((spatial > 0) & (spatial < 1)).all()


CASE = Case(
    forms={"default": {}, "sum": {"mode": "sum"}},
    reference=concurrent,
    count=count,
    keys=keys,
    plain=PlainSCSE,
    floor=Floor(3, 4, "means and scores: x; gates: x, y", "both gates: dy, x; input: dy, dx"),
    saved=0.1,
    time=0.8,
    weights={"channel": (2, 8, 1, 1, 1), "spatial": (2, 1, 4, 3, 5)},
    published=[(64, n, {}, 4_257) for n in (1, 2, 3)],
    values=[{"mode": "add"}],
    drawn={"reduction": REDUCTIONS, "mode": ["max", "sum"]},
    is_set=True,
    faults=[both_modes_follow_from_the_reported_gates, the_spatial_gate_has_one_channel],
)
