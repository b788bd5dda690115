"""The ten mechanisms as they are commonly written: 3-D, compact form, plain PyTorch modules, eager.

What people copy: pooling modules, gates that are expanded, maps that are concatenated or stacked, a score for every
pair. Nothing here is clever and nothing is wrong: parameters are registered in the order of the library's, with which
each form computes the same function. No code is shared with the library.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PlainSE(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(self.pool(x).flatten(1))
        return x * gate[:, :, None, None, None].expand_as(x)


class PlainECA(nn.Module):
    """Efficient channel attention."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.mix = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x).flatten(2)
        gate = self.sigmoid(self.mix(pooled.transpose(1, 2)).transpose(1, 2))
        return x * gate[..., None, None].expand_as(x)


class PlainCBAM(nn.Module):
    """Channel gate, then spatial gate."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mean, self.largest = nn.AdaptiveAvgPool3d(1), nn.AdaptiveMaxPool3d(1)
        self.shared = nn.Sequential(
            nn.Conv3d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv3d(hidden, channels, 1, bias=False)
        )
        self.spatial = nn.Conv3d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.sigmoid(self.shared(self.mean(x)) + self.shared(self.largest(x)))
        maps = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * self.sigmoid(self.spatial(maps))


class PlainBAM(nn.Module):
    """One gate of a channel and a spatial map, both expanded before they are added."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
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


class PlainSK(nn.Module):
    """Branches that are stacked, weighed and summed."""

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
        """What follows the convolutions."""
        stacked = torch.stack(maps, 1)
        hidden = self.squeeze(self.pool(stacked.sum(1)).flatten(1))
        weights = self.softmax(torch.stack([select(hidden) for select in self.select], 1))
        return (stacked * weights[..., None, None, None]).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge([branch(x) for branch in self.branches])


class PlainGC(nn.Module):
    """Global context, added."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
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


class PlainNonLocal(nn.Module):
    """The non-local block, embedded Gaussian, with a score for every pair."""

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.value, self.query, self.key = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).mT for layer in (self.query, self.key, self.value))
        y = (q @ k.mT).softmax(-1) @ v
        return x + self.out(y.mT.unflatten(2, x.shape[2:]))


class PlainMHSA(nn.Module):
    """Self-attention of several heads, with a score for every pair."""

    def __init__(self, channels: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or max(divisor for divisor in range(1, 9) if channels % divisor == 0)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *shape = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        width = channels // self.heads
        q, k, v = tokens.reshape(batch, -1, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(width)
        y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(batch, channels, *shape)


class PlainDual(nn.Module):
    """Position and channel attention on the same input, with a score for every pair of voxels and of channels."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.alpha = nn.Parameter(torch.zeros(()))
        # In a container, since a module gives its own parameters before those of its children: beta comes last.
        self.position = nn.ModuleList([nn.Conv3d(channels, width, 1) for width in (inner, inner, channels)])
        self.scales = nn.ParameterList([torch.zeros(())])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in self.position)
        over_voxels = torch.bmm(v, torch.bmm(q.mT, k).softmax(-1).mT)
        flat = x.flatten(2)
        over_channels = torch.bmm(torch.bmm(flat, flat.mT).softmax(-1), flat)
        return x + self.alpha * over_voxels.view_as(x) + self.scales[0] * over_channels.view_as(x)


PLAIN: dict[str, type[nn.Module]] = {
    "se": PlainSE,
    "eca": PlainECA,
    "cbam": PlainCBAM,
    "bam": PlainBAM,
    "coord": PlainCoordinate,
    "sk": PlainSK,
    "gc": PlainGC,
    "non_local": PlainNonLocal,
    "mhsa": PlainMHSA,
    "danet": PlainDual,
}


def copy_parameters(plain: nn.Module, ours: nn.Module) -> None:
    """Gives the library's module the weights of a plain one, in their common order."""
    for parameter, given in zip(ours.parameters(), plain.parameters(), strict=True):
        parameter.data.copy_(given.data.reshape(parameter.shape))
