"""Layers of attention over a volume with random weights, and the rules of the references that they follow."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Scope, VolumeAttention
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
    """A scope with a position bias."""

    scope: Scope
    position_bias: str | None = None

    def __str__(self) -> str:
        return f"{self.scope}{'' if self.position_bias is None else self.position_bias}"

    @property
    def name(self) -> str:
        return NAMES[type(self.scope)]

    def rule(self, spatial_dims: int) -> Rule:
        """What it says, for the references."""
        options = vars(self.scope)

        def per_axis(value: int | tuple[int, ...]) -> tuple[int, ...]:
            return (value,) * spatial_dims if isinstance(value, int) else value

        return Rule(
            self.name,
            per_axis(options.get("size", options.get("stride", 1))),
            options.get("shift", False),
            per_axis(options.get("dilation", 1)),
        )

    def layer(self, spatial_dims: int, heads: int = HEADS, **options: Any) -> VolumeAttention:
        """In float64, with random position tables."""
        layer = VolumeAttention(
            spatial_dims, heads, scope=self.scope, position_bias=self.position_bias, **options
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
    """The output, and from a random gradient above it those of q, k, v and the position table."""
    inputs = dict(zip("qkv", leaves, strict=True)) | ({} if table is None else {"table": table})
    gradients = torch.autograd.grad(output, list(inputs.values()), volume(*output.shape, seed=9))
    return {"output": output.detach()} | dict(zip(inputs, gradients, strict=True))


def assert_results(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Holds outputs to 1e-10 and gradients to 1e-9 of the largest value."""
    assert list(found) == list(expected)
    for name, value in found.items():
        reference = expected[name]
        assert value.shape == reference.shape
        tolerance = (1e-10 if name == "output" else 1e-9) * max(1e-3, reference.abs().max().item())
        torch.testing.assert_close(
            value, reference, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
