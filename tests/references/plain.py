"""Building blocks of the references: a volume as a dictionary of voxels, and loops over it.

Nothing here imports the library or calls a convolution, pooling, norm or softmax of PyTorch: only sums, products and
comparisons of scalars and (B, C) vectors, which autograd differentiates.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Index = tuple[int, ...]
Volume = dict[Index, Tensor]  # voxel -> (B, C), in row-major order of the voxels
Statistics = tuple[Tensor, Tensor]  # running mean and variance of one norm


def voxels(x: Tensor) -> Volume:
    """Splits (B, C, *S) into its voxels, one (B, C) vector each."""
    indices = itertools.product(*(range(size) for size in x.shape[2:]))
    return dict(zip(indices, x.flatten(2).unbind(-1), strict=True))


def volume(values: Volume) -> Tensor:
    """Joins voxels to (B, C, *S)."""
    shape = [1 + max(index[axis] for index in values) for axis in range(len(next(iter(values))))]
    return torch.stack([values[index] for index in sorted(values)], -1).unflatten(-1, shape)


def mean(values: Iterable[Tensor]) -> Tensor:
    values = list(values)
    return sum(values[1:], values[0]) / len(values)


def maximum(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, values)


def relu(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, torch.zeros_like(value))


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def hard_swish(value: Tensor) -> Tensor:
    return torch.where(value <= -3, torch.zeros_like(value), torch.where(value >= 3, value, value * (value + 3) / 6))


def softmax(energies: Sequence[Tensor]) -> list[Tensor]:
    """Exponentials over their sum; the largest energy is subtracted first to avoid overflow."""
    largest = maximum(energies).detach()
    exponentials = [torch.exp(energy - largest) for energy in energies]
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the products over the last axis."""
    return (left * right).sum(-1)


def linear(vector: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_o = sum over i of weight[o, i] vector[i], plus bias[o]."""
    product = dot(vector[:, None, :], weight)
    return product if bias is None else product + bias


def pointwise(values: Volume, weight: Tensor, bias: Tensor | None = None) -> Volume:
    """The same linear map at every voxel: a convolution of kernel 1."""
    return {index: linear(value, weight, bias) for index, value in values.items()}


def convolution(
    values: Volume,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Volume:
    """y[p] = sum over taps t of weight[:, :, t] x[p + dilation (t - centre)], zero outside the volume."""
    weight = _every_input(weight, groups)
    kernel = weight.shape[2:]
    dilation = [1] * len(kernel) if dilation is None else dilation
    taps = {tap: weight[(..., *tap)] for tap in itertools.product(*(range(size) for size in kernel))}
    result = {}
    for index in values:
        total = torch.zeros_like(linear(values[index], taps[(0,) * len(kernel)]))
        for tap, matrix in taps.items():
            source = tuple(
                p + step * (t - size // 2) for p, t, size, step in zip(index, tap, kernel, dilation, strict=True)
            )
            if source in values:
                total = total + linear(values[source], matrix)
        result[index] = total if bias is None else total + bias
    return result


def _every_input(weight: Tensor, groups: int) -> Tensor:
    """The weight of a grouped convolution over all inputs: zero for inputs of other groups."""
    outputs, inputs = weight.shape[:2]
    rows = []
    for output in range(outputs):
        group = output // (outputs // groups)
        blocks = [weight[output] if other == group else 0 * weight[output] for other in range(groups)]
        rows.append(torch.cat(blocks))
    result = torch.stack(rows)
    assert result.shape[1] == inputs * groups
    return result


def max_pool(values: Volume) -> Volume:
    """The maximum of each 2 x .. x 2 block; drops a last odd voxel, keeps an axis of one voxel."""
    shape = [1 + max(index[axis] for index in values) for axis in range(len(next(iter(values))))]
    result = {}
    for cell in itertools.product(*(range(max(1, size // 2)) for size in shape)):
        members = itertools.product(*((2 * place, 2 * place + 1) for place in cell))
        result[cell] = maximum(values[member] for member in members if member in values)
    return result


def batch_norm(
    values: Volume, weight: Tensor, bias: Tensor, statistics: Statistics, training: bool, eps: float = 1e-5
) -> Volume:
    """Uses statistics per channel over batch and voxels in training, the running statistics in eval.

    A channel with a single value has no variance, so the running statistics are used in training too.
    """
    average, variance = statistics
    batch = next(iter(values.values())).shape[0]
    if training and batch * len(values) > 1:
        average = mean(value.mean(0) for value in values.values())
        variance = mean(((value - average) ** 2).mean(0) for value in values.values())
    return {index: (value - average) / torch.sqrt(variance + eps) * weight + bias for index, value in values.items()}


def layer_norm(vector: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Statistics per sample over the channels of one vector."""
    average = vector.mean(-1, keepdim=True)
    variance = ((vector - average) ** 2).mean(-1, keepdim=True)
    return (vector - average) / torch.sqrt(variance + eps) * weight + bias


def largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)
