"""Selective kernel, arXiv 1903.06586: branches with growing receptive fields, a softmax over branches per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, norm_keys
from tests.references.plain import batch_norm, convolution, largest_divisor, linear, mean, relu, softmax, volume, voxels


def selective_kernel(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    branches=2,
    reduction=16,
    min_channels=32,
    groups=32,
):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(channels // reduction, min_channels)
    groups = largest_divisor(channels, groups)
    paper = variant == "paper"
    remaining, statistics = iter(parameters), iter(statistics)

    values = voxels(x)
    features = []
    for branch in range(branches):
        size, dilation = (3, 1 + branch) if paper else (3 + 2 * branch, 1)
        weight = next(remaining).reshape(channels, channels // groups, *[size] * axes)
        feature = convolution(values, weight, dilation=[dilation] * axes, groups=groups)
        feature = batch_norm(feature, next(remaining), next(remaining), next(statistics), training)
        features.append({index: relu(value) for index, value in feature.items()})

    pooled = mean(sum(feature[index] for feature in features) for index in values)
    weight = next(remaining).reshape(hidden, channels)
    if paper:
        squeezed = {(): linear(pooled, weight)}
        squeezed = batch_norm(squeezed, next(remaining), next(remaining), next(statistics), training)
        squeezed = relu(squeezed[()])
    else:
        squeezed = linear(pooled, weight, next(remaining))

    energies = []
    for _ in range(branches):
        weight = next(remaining).reshape(channels, hidden)
        energies.append(linear(squeezed, weight, None if paper else next(remaining)))
    shares = softmax(energies)
    assert not list(remaining)

    return volume(
        {
            index: sum(share * feature[index] for share, feature in zip(shares, features, strict=True))
            for index in values
        }
    )


class PlainSK(nn.Module):
    """Stacks, weights and sums the branches."""

    def __init__(self, channels: int, branches: int = 2, reduction: int = 16, groups: int = 32) -> None:
        super().__init__()
        hidden = max(channels // reduction, 32)
        groups = max(divisor for divisor in range(1, min(groups, channels) + 1) if channels % divisor == 0)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(channels, channels, 3 + 2 * i, padding=1 + i, groups=groups, bias=False),
                nn.BatchNorm3d(channels),
                nn.ReLU(),
            )
            for i in range(branches)
        )
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.squeeze = nn.Linear(channels, hidden)
        self.select = nn.ModuleList(nn.Linear(hidden, channels) for _ in range(branches))
        self.softmax = nn.Softmax(1)

    def merge(self, maps: list[Tensor]) -> Tensor:
        """Merges the outputs of the convolutions."""
        stacked = torch.stack(maps, 1)
        hidden = self.squeeze(self.pool(stacked.sum(1)).flatten(1))
        weights = self.softmax(torch.stack([select(hidden) for select in self.select], 1))
        return (stacked * weights[..., None, None, None]).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge([branch(x) for branch in self.branches])


def count(c, n, variant):
    d = max(c // 16, 32)
    groups = max(g for g in range(1, 33) if c % g == 0)
    if variant == "paper":
        return 2 * (c * c * 3**n // groups + 2 * c) + c * d + 2 * d + 2 * d * c
    kernels = sum(c * c * size**n // groups + 2 * c for size in (3, 5))
    return kernels + (c * d + d) + 2 * (d * c + c)


def keys(n):
    def branches(inputs, *sizes):
        return ", ".join(
            f"branches.{i}.0.weight 8x{inputs}{n * f'x{size}'}, {norm_keys(f'branches.{i}.1', 8)}"
            for i, size in enumerate(sizes)
        )

    select = ", ".join(f"select.{i}.weight 8x4, select.{i}.bias 8" for i in range(3))
    two = select.rpartition(", select.2.weight")[0]
    return {
        "default": f"{branches(1, 3, 5)}, squeeze.0.weight 4x8, squeeze.0.bias 4, {two}",
        "paper": (
            f"{branches(1, 3, 3)}, squeeze.0.weight 4x8, {norm_keys('squeeze.1', 4)}, "
            "select.0.weight 8x4, select.1.weight 8x4"
        ),
        "three_branches": f"{branches(4, 3, 5, 7)}, squeeze.0.weight 4x8, squeeze.0.bias 4, {select}",
    }


CASE = Case(
    forms={
        "default": {"min_channels": 4},
        "paper": {"min_channels": 4} | PAPER,
        "three_branches": {"min_channels": 4, "branches": 3, "groups": 2},
    },
    reference=selective_kernel,
    count=count,
    keys=keys,
    plain=PlainSK,
    floor=Floor(5, 6, "means: both U; sum: both U, y", "weights: dy, both U; branches: dy, both dU"),
    saved=0.05,
    time=0.7,
    weights={"branch": (2, 2, 8, 1, 1, 1)},
    published=[(128, 2, PAPER, 22_080), (128, 3, PAPER, 40_512)],
    values=[{"branches": 0}, {"groups": 0}, {"min_channels": 0}],
    kinds=[{"branches": "2"}, {"groups": 2.0}],
    drawn={
        "branches": [1, 2, 3],
        "reduction": REDUCTIONS,
        "min_channels": [1, 4, 32],
        "groups": [1, 2, 32],
        "norm": NORMS,
    },
    smaller={"min_channels": 2},
    smaller_channels=2,
)
