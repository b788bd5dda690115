"""Paired attention, arXiv 2212.04497: channel attention and attention to pooled voxels, with shared q and k."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import attn3d
from tests.mechanisms.case import Case, Floor
from tests.mechanisms.cases.channel import default_heads, over_channels
from tests.references.plain import dot, mean, pointwise, softmax, volume, voxels


def paired_attention(x, parameters, statistics, training, *, num_heads=None, pattern=None):
    weight, temperature, out_weight, out_bias, *of_spatial = parameters
    channels, stride = x.shape[1], 4 if pattern is None else pattern[1]["stride"]
    heads = num_heads or default_heads(channels)
    width = channels // heads
    projected = pointwise(voxels(x), weight.reshape(4 * channels, channels))
    q, k, v, of_voxels = (
        {index: value[:, part * channels :][:, :channels] for index, value in projected.items()} for part in range(4)
    )
    blocks: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in q:
        blocks.setdefault(tuple(place // stride for place in index), []).append(index)
    pooled_k, pooled_v = ([mean(one[index] for index in block) for block in blocks.values()] for one in (k, of_voxels))

    attended = {}
    for index, query in q.items():
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            shares = softmax([dot(query[:, own], key[:, own]) / math.sqrt(width) for key in pooled_k])
            parts.append(sum(share[:, None] * value[:, own] for share, value in zip(shares, pooled_v, strict=True)))
        attended[index] = torch.cat(parts, 1)
    first = pointwise(over_channels(q, k, v, temperature, heads), out_weight.flatten(1), out_bias)
    if not of_spatial:  # a single channel has no second half
        return volume(first)
    second = pointwise(attended, of_spatial[0].flatten(1), of_spatial[1])
    return volume({index: torch.cat([first[index], second[index]], 1) for index in first})


class PlainPaired(nn.Module):
    """Paired attention as it is commonly written, with normalised copies and a score for every voxel and block."""

    def __init__(self, channels: int, heads: int | None = None, stride: int = 4) -> None:
        super().__init__()
        self.heads = heads or default_heads(channels)
        self.stride = stride
        self.project = nn.Conv3d(channels, 4 * channels, 1, bias=False)
        self.scales = nn.ParameterList([torch.ones(self.heads)])
        self.halves = nn.ModuleList(
            [nn.Conv3d(channels, width, 1) for width in (channels - channels // 2, channels // 2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, of_voxels = self.project(x).chunk(4, 1)

        def heads(tensor: Tensor) -> Tensor:
            return tensor.flatten(2).unflatten(1, (self.heads, -1))

        size = [min(self.stride, extent) for extent in x.shape[2:]]
        pooled_k, pooled_v = (
            heads(functional.avg_pool3d(one, size, ceil_mode=True, count_include_pad=False)) for one in (k, of_voxels)
        )
        q, k, v = heads(q), heads(k), heads(v)
        scores = torch.einsum("bhdn,bhdm->bhnm", q, pooled_k) / math.sqrt(q.shape[2])
        over_voxels = torch.einsum("bhnm,bhdm->bhdn", scores.softmax(3), pooled_v)
        q, k = functional.normalize(q, dim=3), functional.normalize(k, dim=3)
        over_channels = (q @ k.mT * self.scales[0][:, None, None]).softmax(3) @ v
        halves = zip(self.halves, (over_channels, over_voxels), strict=True)
        return torch.cat([layer(part.flatten(1, 2).view_as(x)) for layer, part in halves], 1)


def count(c, n, variant):
    return 5 * c * c + c + default_heads(c)


def keys(n):
    def every(heads):
        return (
            f"qkv.weight 32x8, attention.temperature {heads}, out.weight 4x8, out.bias 4, "
            "spatial_out.weight 4x8, spatial_out.bias 4"
        )

    return {"default": every(4), "one_head": every(1)}


def values_stay_at_their_voxel():
    """The authors' code mixes voxels. Here blocks are single voxels, and each query matches only its own key."""
    channels, shape = 8, (2, 2, 2)
    module = attn3d.PairedAttention(3, channels, num_heads=1, pattern=("pooled_keys", {"stride": 1})).double()
    eye = torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        module.qkv.weight.copy_(torch.cat([1000 * eye, eye, 0 * eye, eye]))
        module.spatial_out.weight.copy_(eye[:4])
        module.spatial_out.bias.zero_()
    x = eye.view(1, channels, *shape)  # in voxel i, only channel i is not zero
    found = module(x)[:, 4:]
    for number, voxel in enumerate(itertools.product(range(2), repeat=3)):
        expected = eye[number][:4] if number < 4 else torch.zeros(4, dtype=torch.float64)
        torch.testing.assert_close(found[0, :, *voxel], expected)


def one_module_takes_every_number_of_voxels():
    """The published matrix from N to 64 tokens works for one N only."""
    module = attn3d.PairedAttention(3, 8)
    for shape in ((1, 1, 1), (5, 9, 2), (16, 4, 8)):
        assert module(torch.zeros(1, 8, *shape)).shape == (1, 8, *shape)


CASE = Case(
    forms={
        "default": {"pattern": ("pooled_keys", {"stride": 2})},
        "one_head": {"pattern": ("pooled_keys", {"stride": 3}), "num_heads": 1},
    },
    reference=paired_attention,
    count=count,
    keys=keys,
    plain=PlainPaired,
    floor=Floor(3, 5, "energies, keys and values: x; the rest: x, y", "weights, keys, values: dy, x; input: dy, x, dx"),
    weights={"query": (2, 4, 3, 1, 1, 2), "affinity": (2, 8, 8)},
    values=[{"num_heads": 3}, {"num_heads": 0}],
    kinds=[{"num_heads": 2.0}],
    faults=[values_stay_at_their_voxel, one_module_takes_every_number_of_voxels],
)
