"""Transformations of queries and keys before the scores, token by token and pair by pair."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

Place = tuple[float, ...]


def places(shape: tuple[int, ...], stride: tuple[int, ...] | None = None) -> list[Place]:
    """The positions of the voxels of a volume; with a stride, the mean positions of its blocks."""
    voxels = list(itertools.product(*map(range, shape)))
    if stride is None:
        return voxels
    blocks: dict[tuple[int, ...], list[Place]] = {}
    for voxel in voxels:
        blocks.setdefault(tuple(here // step for here, step in zip(voxel, stride, strict=True)), []).append(voxel)
    return [tuple(sum(along) / len(along) for along in zip(*blocks[block], strict=True)) for block in sorted(blocks)]


def rotate(x: Tensor, where: list[Place], *, base: float, spacing: Place, frequencies: Tensor | None = None) -> Tensor:
    """Rotates the pairs of x, (B, H, N, d), by position: axial, or mixed with frequencies (n, H, d // 2)."""
    axes, width = len(spacing), x.shape[3]
    tokens = []
    for number, place in enumerate(where):
        token = list(x[:, :, number].unbind(-1))
        if frequencies is None:
            count = width // (2 * axes)
            turns = [
                (2 * (axis * count + j), torch.tensor(place[axis] * spacing[axis] / base ** (j / count), dtype=x.dtype))
                for axis in range(axes)
                for j in range(count)
            ]
        else:
            turns = [
                (2 * j, sum(place[axis] * spacing[axis] * frequencies[axis, :, j] for axis in range(axes)))
                for j in range(width // 2)
            ]
        for first, angle in turns:
            one, other = token[first], token[first + 1]
            token[first] = one * torch.cos(angle) - other * torch.sin(angle)
            token[first + 1] = one * torch.sin(angle) + other * torch.cos(angle)
        tokens.append(torch.stack(token, -1))
    return torch.stack(tokens, 2)


def root_mean_square_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divides every token by its root mean square, with PyTorch's epsilon."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + torch.finfo(x.dtype).eps) * weight


def unit(x: Tensor) -> Tensor:
    """Divides every token by its length."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def default_base(mixed: bool) -> float:
    """The base that was published for images."""
    return 10.0 if mixed else 100.0


def scale_of(width: int, scores: str) -> float:
    """The scale of the products."""
    return 1.0 if scores == "cosine" else 1 / math.sqrt(width)
