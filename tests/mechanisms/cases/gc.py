"""Global context, arXiv 1904.11492: y = x + W2 relu(LayerNorm(W1 c)), c = sum_j softmax_j(w x_j + b) x_j."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, REDUCTIONS, Case, Floor
from tests.references.plain import layer_norm, linear, relu, sigmoid, softmax, volume, voxels


def global_context(x, parameters, statistics, training, *, reduction=16, fusion="add"):
    channels = x.shape[1]
    hidden = max(channels // reduction, min(channels, 4))
    key_weight, key_bias, weight1, bias1, norm_weight, norm_bias, weight2, bias2 = parameters

    values = voxels(x)
    energies = [linear(value, key_weight.reshape(1, channels), key_bias) for value in values.values()]
    shares = softmax(energies)
    context = sum(share * value for share, value in zip(shares, values.values(), strict=True))

    squeezed = linear(context, weight1.reshape(hidden, channels), bias1)
    squeezed = relu(layer_norm(squeezed, norm_weight, norm_bias))
    transformed = linear(squeezed, weight2.reshape(channels, hidden), bias2)
    if fusion == "mul":
        return volume({index: value * sigmoid(transformed) for index, value in values.items()})
    return volume({index: value + transformed for index, value in values.items()})


class PlainGC(nn.Module):
    """Global context, added."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.mask = nn.Conv3d(channels, 1, 1)
        self.softmax = nn.Softmax(2)
        self.transform = nn.Sequential(
            nn.Conv3d(channels, hidden, 1),
            nn.LayerNorm([hidden, 1, 1, 1]),
            nn.ReLU(),
            nn.Conv3d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.softmax(self.mask(x).flatten(2)).unsqueeze(-1)
        context = torch.matmul(x.flatten(2).unsqueeze(1), weights)
        return x + self.transform(context.view(*x.shape[:2], 1, 1, 1))


def count(c, n, variant):
    h = max(c // 16, min(c, 4))
    return 2 * c * h + 2 * c + 3 * h + 1


def keys(n):
    every = (
        "score.weight 1x8x1, score.bias 1, squeeze.weight 4x8, squeeze.bias 4, norm.weight 4, norm.bias 4, "
        "excite.weight 8x4, excite.bias 8"
    )
    return {"default": every, "multiply": every}


CASE = Case(
    forms={"default": {"reduction": 2}, "multiply": {"reduction": 2, "fusion": "mul"}},
    reference=global_context,
    count=count,
    keys=keys,
    plain=PlainGC,
    floor=Floor(3, 4, "softmax and its mean in one: x; sum: x, y", "context: dy; input: dy, x, dx"),
    saved=0.05,
    time=1.1,
    weights={"added": (2, 8, 1, 1, 1), "spatial": (2, 1, 4, 3, 5)},
    identity=["default"],
    values=[{"fusion": "multiply"}],
    drawn={"reduction": REDUCTIONS, "fusion": ["add", "mul"], "norm": NORMS},
    is_set=True,
)
