"""Squeeze-and-excitation, arXiv 1709.01507: y = x sigma(W2 relu(W1 GAP x))."""

from __future__ import annotations

from torch import Tensor, nn

from tests.mechanisms.case import PAPER, REDUCTIONS, Case, Floor, gated
from tests.references.plain import linear, mean, relu, sigmoid, volume, voxels


def squeeze_excitation(x, parameters, statistics, training, *, variant="compact", reduction=16, bias="auto"):
    channels = x.shape[1]
    hidden = max(channels // reduction, min(channels, 4))
    if bias == "auto":
        bias = variant == "paper"
    weight1, bias1, weight2, bias2 = parameters if bias else (parameters[0], None, parameters[1], None)

    values = voxels(x)
    pooled = mean(values.values())
    squeezed = relu(linear(pooled, weight1.reshape(hidden, channels), bias1))
    gate = sigmoid(linear(squeezed, weight2.reshape(channels, hidden), bias2))
    return volume({index: value * gate for index, value in values.items()})


class PlainSE(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(self.pool(x).flatten(1))
        return x * gate[:, :, None, None, None].expand_as(x)


def count(c, n, variant):
    h = max(c // 16, min(c, 4))
    return 2 * c * h + (c + h if variant == "paper" else 0)


def keys(n):
    weights = "squeeze.weight 4x8, excite.weight 8x4"
    return {"default": weights, "paper": "squeeze.weight 4x8, squeeze.bias 4, excite.weight 8x4, excite.bias 8"}


CASE = Case(
    forms={"default": {"reduction": 2}, "paper": {"reduction": 2} | PAPER},
    reference=squeeze_excitation,
    count=count,
    keys=keys,
    plain=PlainSE,
    floor=Floor(3, 4, "means: x; gate: x, y", "gate: dy, x; input: dy, dx"),
    saved=0.05,
    time=1.1,
    weights={"channel": (2, 8, 1, 1, 1)},
    output=gated,
    kinds=[{"bias": "yes"}],
    drawn={"reduction": REDUCTIONS, "bias": ["auto", True, False]},
    is_set=True,
)
