"""Attention layers over a volume with random weights, and the reference loops to compare them with."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Pattern, VolumeAttention
from tests.mechanisms.parity import volume
from tests.references.attention import Rule, attend_within

BATCH, HEADS, WIDTH, VALUE_WIDTH = 2, 2, 3, 4


NAMES = {
    Global: "global",
    Window: "window",
    Grid: "grid",
    Axial: "axial",
    Neighborhood: "neighborhood",
    PooledKeys: "pooled_keys",
}


class Scoped(NamedTuple):
    """A pattern with a position bias."""

    pattern: Pattern
    position_bias: str | None = None

    def __str__(self) -> str:
        return f"{self.pattern}{'' if self.position_bias is None else self.position_bias}"

    @property
    def name(self) -> str:
        return NAMES[type(self.pattern)]

    def rule(self, spatial_dims: int) -> Rule:
        """The pattern as a rule of the references."""
        options = vars(self.pattern)

        def per_axis(value: int | tuple[int, ...]) -> tuple[int, ...]:
            return (value,) * spatial_dims if isinstance(value, int) else value

        return Rule(
            self.name,
            per_axis(options.get("size", options.get("stride", 1))),
            options.get("shift", False),
            per_axis(options.get("dilation", 1)),
            per_axis(options.get("stride", 1)),
        )

    def layer(self, spatial_dims: int, heads: int = HEADS, **options: Any) -> VolumeAttention:
        """Builds a layer in float64 with random position tables."""
        layer = VolumeAttention(
            spatial_dims, heads, pattern=self.pattern, position_bias=self.position_bias, **options
        ).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
        return layer


def tokens(shape: tuple[int, ...]) -> list[Tensor]:
    """q, k and v that require gradients."""
    sizes = (WIDTH, WIDTH, VALUE_WIDTH)
    return [volume(BATCH, HEADS, math.prod(shape), size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]


def loops(scoped: Scoped, shape: tuple[int, ...], leaves: list[Tensor], table: Tensor | None, **options: Any):
    """The output and the weights of the reference."""
    rule = scoped.rule(len(shape))
    return attend_within(rule, *leaves, shape, table=table, table_kind=scoped.position_bias, **options)


def results(output: Tensor, leaves: list[Tensor], table: Tensor | None) -> dict[str, Tensor]:
    """The output, and the gradients of q, k, v and the position table for a random output gradient."""
    inputs = dict(zip("qkv", leaves, strict=True)) | ({} if table is None else {"table": table})
    gradients = torch.autograd.grad(output, list(inputs.values()), volume(*output.shape, seed=9))
    return {"output": output.detach()} | dict(zip(inputs, gradients, strict=True))


def assert_results(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Checks outputs to 1e-10 and gradients to 1e-9 of the largest value."""
    assert list(found) == list(expected)
    for name, value in found.items():
        reference = expected[name]
        assert value.shape == reference.shape
        tolerance = (1e-10 if name == "output" else 1e-9) * max(1e-3, reference.abs().max().item())
        torch.testing.assert_close(
            value, reference, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# Axes of size 1, smaller than a window, equal to it, prime, a multiple of it, and one more than a multiple.
SHAPES = [(1,), (2,), (7,), (8,), (13,), (1, 6), (5, 7), (9, 1), (4, 8), (3, 4, 5), (1, 5, 6), (2, 1, 7), (7, 3, 3)]
PATTERNS = [
    Scoped(Global()),
    Scoped(Window(3)),
    Scoped(Window(4, shift=True)),
    Scoped(Window(3, shift=True), "axis"),
    Scoped(Window(4), "joint"),
    Scoped(Window(3, shift=True), "joint"),
    Scoped(Grid(2)),
    Scoped(Grid(3), "axis"),
    Scoped(Grid(4), "joint"),
    Scoped(Axial()),
    Scoped(Neighborhood(3), "axis"),
    Scoped(Neighborhood(5)),
    Scoped(Neighborhood(3, dilation=2), "axis"),
    Scoped(Neighborhood(5, dilation=3)),
    Scoped(Neighborhood(4), "axis"),
    Scoped(Neighborhood(5, stride=2), "axis"),
    Scoped(Neighborhood(5, dilation=2, stride=5), "axis"),
    Scoped(PooledKeys(2)),
    Scoped(PooledKeys(3)),
]
# A different size along each axis, for the shape (3, 5, 6).
ANISOTROPIC = [
    Scoped(Window((1, 2, 4), shift=True), "axis"),
    Scoped(Window((2, 7, 7), shift=True), "joint"),
    Scoped(Window((1, 1, 1)), "axis"),
    Scoped(Grid((3, 1, 4)), "joint"),
    Scoped(Grid((9, 2, 5)), "axis"),
    Scoped(Neighborhood((1, 3, 5)), "axis"),
    Scoped(Neighborhood((3, 5, 3), dilation=(1, 2, 4)), "axis"),
    Scoped(Neighborhood((2, 4, 5), dilation=(1, 2, 1), stride=(2, 1, 5)), "axis"),
    Scoped(PooledKeys((1, 2, 4))),
    Scoped(PooledKeys((9, 5, 1))),
]
BACKENDS = ["chunked", "sdpa", "math", "auto", "captured"]


@functools.cache
def case(scoped: Scoped, shape: tuple[int, ...]):
    """Inputs, and the results of the reference with the position table that all layers here have."""
    leaves, table = tokens(shape), scoped.layer(len(shape)).position_table
    return leaves, results(loops(scoped, shape, leaves, table)[0], leaves, table)


class Captured(nn.Module):
    """A layer that runs, in eager mode, the plain operators that a capture records."""

    def __init__(self, layer: VolumeAttention) -> None:
        super().__init__()
        self.layer = layer
        self.position_table = layer.position_table

    def forward(self, *args: Any) -> Tensor:
        answers = {"is_eager": lambda: False, "needs_plain_operators": lambda: True}
        with mock.patch.multiple("attn3d.attention.layer", **answers):
            return self.layer(*args)


def build(scoped: Scoped, spatial_dims: int, backend: str, **options: Any) -> nn.Module:
    """A layer with a backend, or in the form that a capture records."""
    if backend == "captured":
        return Captured(scoped.layer(spatial_dims, **options))
    return scoped.layer(spatial_dims, backend=backend, **options)


@functools.cache
def layer_of(scoped: Scoped, spatial_dims: int, backend: str) -> nn.Module:
    """One layer for all tests, which do not change it."""
    return build(scoped, spatial_dims, backend)


def is_supported(scoped: Scoped, backend: str) -> bool:
    """Whether a backend supports gradients for this pattern: "sdpa" gives none for a bias."""
    return backend != "sdpa" or scoped.position_bias is None


def assert_equal_to_the_loops(scoped: Scoped, shape: tuple[int, ...], backend: str) -> None:
    """Compares output and gradients with the loops; checks that "sdpa" raises where it has no gradients."""
    leaves, reference = case(scoped, shape)
    layer = layer_of(scoped, len(shape), backend)
    if not is_supported(scoped, backend):
        with pytest.raises(ValueError, match="`backend` 'sdpa' does not support a bias that requires a gradient"):
            layer(*leaves, list(shape))
        return
    assert_results(results(layer(*leaves, list(shape)), leaves, layer.position_table), reference)
