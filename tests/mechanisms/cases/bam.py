"""Bottleneck attention, arXiv 1807.06514: x times sigma(Mc + Ms) (compact) or 1 + sigma(Mc + Ms) (paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, PerAxis, norm_keys
from tests.references.plain import (
    batch_norm,
    convolution,
    linear,
    maximum,
    mean,
    pointwise,
    relu,
    sigmoid,
    volume,
    voxels,
)


def bottleneck_attention(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    reduction=16,
    kernel_size="auto",
    dilation="auto",
    combine="sum",
):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(channels // reduction, min(channels, 4))
    paper = variant == "paper"
    if kernel_size == "auto":
        kernel_size = 3 if paper else 7
    if dilation == "auto":
        dilation = 4 if paper else 1
    kernel = (kernel_size,) * axes if isinstance(kernel_size, int) else kernel_size
    dilation = (dilation,) * axes if isinstance(dilation, int) else dilation
    forms = _paper if paper else _compact
    values = voxels(x)
    channel, spatial = forms(values, iter(parameters), iter(statistics), training, hidden, kernel, dilation)
    result = {}
    for index, value in values.items():
        energy = channel + spatial[index] if combine == "sum" else channel * spatial[index]
        gate = 1 + sigmoid(energy) if paper else sigmoid(energy)
        result[index] = value * gate
    return volume(result)


def _compact(values, parameters, statistics, training, hidden, kernel, dilation):
    """Mc = W2 relu(W1 GAP x); Ms = BN(conv_7(mean_c x + max_c x))."""
    pooled = mean(values.values())
    channels = pooled.shape[1]
    squeezed = relu(linear(pooled, next(parameters).reshape(hidden, channels)))
    channel = linear(squeezed, next(parameters).reshape(channels, hidden))

    summed = {}
    for index, value in values.items():
        by_channel = value.unbind(1)
        summed[index] = (mean(by_channel) + maximum(by_channel))[:, None]
    spatial = convolution(summed, next(parameters).reshape(1, 1, *kernel), dilation=dilation)
    spatial = batch_norm(spatial, next(parameters), next(parameters), next(statistics), training)
    assert not list(parameters)
    return channel, spatial


def _paper(values, parameters, statistics, training, hidden, kernel, dilation):
    """Mc: GAP, linear, BN, relu, linear. Ms: 1^n conv, BN, relu, twice (dilated conv, BN, relu), 1^n conv."""
    pooled = mean(values.values())
    channels = pooled.shape[1]

    def norm_relu(features):
        normed = batch_norm(features, next(parameters), next(parameters), next(statistics), training)
        return {index: relu(value) for index, value in normed.items()}

    squeezed = linear(pooled, next(parameters).reshape(hidden, channels), next(parameters))
    squeezed = norm_relu({(): squeezed})[()]
    channel = linear(squeezed, next(parameters).reshape(channels, hidden), next(parameters))

    spatial = norm_relu(pointwise(values, next(parameters).reshape(hidden, channels), next(parameters)))
    for _ in range(2):
        weight, bias = next(parameters).reshape(hidden, hidden, *kernel), next(parameters)
        spatial = norm_relu(convolution(spatial, weight, bias, dilation=dilation))
    spatial = pointwise(spatial, next(parameters).reshape(1, hidden), next(parameters))
    assert not list(parameters)
    return channel, spatial


class PlainBAM(nn.Module):
    """One gate from the sum of a channel map and a spatial map, both expanded."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )
        self.spatial = nn.Sequential(
            nn.Conv3d(1, 1, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm3d(1)
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel(self.pool(x).flatten(1))[:, :, None, None, None].expand_as(x)
        spatial = self.spatial(torch.mean(x, 1, keepdim=True) + torch.max(x, 1, keepdim=True)[0]).expand_as(x)
        return x * self.sigmoid(channel + spatial)


def count(c, n, variant):
    h = max(c // 16, min(c, 4))
    if variant == "compact":
        return 2 * c * h + 7**n + 2
    channel = (c * h + h) + 2 * h + (h * c + c)
    spatial = (c * h + h) + 2 * h + 2 * (3**n * h * h + h + 2 * h) + (h + 1)
    return channel + spatial


def keys(n):
    compact = (
        "channel_branch.0.weight 4x8, channel_branch.2.weight 8x4, "
        f"spatial_branch.0.weight 1x1{n * 'x7'}, {norm_keys('spatial_branch.1', 1)}"
    )
    dilated = f"weight 4x4{n * 'x3'}"
    paper = (
        f"channel_branch.0.weight 4x8, channel_branch.0.bias 4, {norm_keys('channel_branch.1', 4)}, "
        "channel_branch.3.weight 8x4, channel_branch.3.bias 8, "
        f"spatial_branch.0.weight 4x8{n * 'x1'}, spatial_branch.0.bias 4, {norm_keys('spatial_branch.1', 4)}, "
        f"spatial_branch.3.{dilated}, spatial_branch.3.bias 4, {norm_keys('spatial_branch.4', 4)}, "
        f"spatial_branch.6.{dilated}, spatial_branch.6.bias 4, {norm_keys('spatial_branch.7', 4)}, "
        f"spatial_branch.9.weight 1x4{n * 'x1'}, spatial_branch.9.bias 1"
    )
    return {"default": compact, "product": compact, "paper": paper, "paper_product": paper}


CASE = Case(
    forms={
        "default": {"reduction": 2},
        "product": {"reduction": 2, "combine": "product"},
        "paper": {"reduction": 2} | PAPER,
        "paper_product": {"reduction": 2, "combine": "product"} | PAPER,
    },
    reference=bottleneck_attention,
    count=count,
    keys=keys,
    plain=PlainBAM,
    floor=Floor(3, 4, "means and maxima both ways: x; gate: x, y", "both maps: dy, x; input: dy, dx"),
    saved=0.05,
    time=0.75,
    weights={"channel": (2, 8, 1, 1, 1), "spatial": (2, 1, 4, 3, 5)},
    values=[{"kernel_size": 2}, {"dilation": 0}, {"combine": "prod"}],
    kinds=[{"dilation": 1.5}],
    drawn={
        "reduction": REDUCTIONS,
        "kernel_size": PerAxis([1, 3, 5], ["auto"]),
        "dilation": PerAxis([1, 2, 4], ["auto"]),
        "combine": ["sum", "product"],
        "norm": NORMS,
    },
    smaller={"kernel_size": 3, "dilation": 1},
)
