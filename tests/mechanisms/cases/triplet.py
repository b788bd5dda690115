"""Triplet attention, arXiv 2010.03045: the mean of the gates sigma(BN(conv_7[max_a x; mean_a x])), a an axis or C."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, Case, Floor, gated, norm_keys
from tests.references.plain import batch_norm, convolution, maximum, mean, sigmoid, volume, voxels


def triplet_attention(x, parameters, statistics, training, *, kernel_size=7):
    axes = x.dim() - 2
    remaining, statistics = iter(parameters), iter(statistics)
    values = voxels(x)
    total = dict.fromkeys(values, 0.0)
    for pooled in [*range(axes), None]:
        cells = {}  # index without the axis (the channels take its place) -> values to pool
        for index, value in values.items():
            for channel, entry in enumerate(value.unbind(1)):
                place = index if pooled is None else (*index[:pooled], channel, *index[pooled + 1 :])
                cells.setdefault(place, []).append(entry)
        pairs = {place: torch.stack([maximum(cells[place]), mean(cells[place])], 1) for place in sorted(cells)}
        features = convolution(pairs, next(remaining).reshape(1, 2, *[kernel_size] * axes))
        features = batch_norm(features, next(remaining), next(remaining), next(statistics), training)
        for index, value in values.items():
            at = [index] * value.shape[1]
            if pooled is not None:
                at = [(*index[:pooled], channel, *index[pooled + 1 :]) for channel in range(value.shape[1])]
            total[index] = total[index] + torch.cat([sigmoid(features[place]) for place in at], 1)
    assert not list(remaining)
    return volume({index: value * total[index] / (axes + 1) for index, value in values.items()})


class PlainTriplet(nn.Module):
    """A branch for each axis and one for the channels, with permutations."""

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(2, 1, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm3d(1), nn.Sigmoid()
            )
            for _ in range(4)
        )

    def gated(self, x: Tensor, branch: nn.Module) -> Tensor:
        maps = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], 1)
        return x * branch(maps)

    def forward(self, x: Tensor) -> Tensor:
        deep, high, wide, channel = self.branches
        outputs = []
        for axis, branch in ((2, deep), (3, high), (4, wide)):
            turned = x.transpose(1, axis).contiguous()
            outputs.append(self.gated(turned, branch).transpose(1, axis).contiguous())
        outputs.append(self.gated(x, channel))
        return 1 / 4 * (outputs[0] + outputs[1] + outputs[2] + outputs[3])


def keys(n):
    every = ", ".join(
        f"branches.{index}.0.weight 1x2{n * 'x7'}, {norm_keys(f'branches.{index}.1', 1)}" for index in range(n + 1)
    )
    return {"default": every}


def permuted(parameters, order):
    """A branch for each axis, then the branch of the channels, with three parameters each."""
    branches = [parameters[3 * axis : 3 * axis + 3] for axis in (*order, len(order))]
    return list(itertools.chain(*branches))


CASE = Case(
    forms={"default": {}},
    reference=triplet_attention,
    count=lambda c, n, variant: (n + 1) * (2 * 7**n + 2),
    keys=keys,
    plain=PlainTriplet,
    floor=Floor(
        3,
        5,
        "means and maxima each way: x; gates: x, y",
        "means and maxima again: x; all gates: dy, x; input: dy, dx",
    ),
    saved=0.1,
    time=0.8,
    weights={"gate": (2, 8, 4, 3, 5)},
    output=gated,
    published=[(64, 2, {}, 300), (256, 2, {}, 300), (64, 3, {}, 2_752)],
    values=[{"kernel_size": 4}],
    kinds=[{"kernel_size": 7.0}, {"kernel_size": "7"}],
    drawn={"kernel_size": [1, 3, 7], "norm": NORMS},
    smaller={"kernel_size": 3},
    permuted=permuted,
    collapses="never",  # the gate of an axis of size 1 is part of the mean
)
