"""Patterns in every dtype, number of axes and size of tiles: as exact as all pairs in the same dtype."""

from __future__ import annotations

import math

import pytest
import torch

from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from tests.attention.exactness import DTYPES, error_of, set_tile_bytes
from tests.attention.layers import BATCH, HEADS, Scoped, loops, results, tokens

pytestmark = pytest.mark.scorecard("backends")

SHAPES = [(13,), (3, 5), (2, 3, 3)]
PATTERNS = [
    Scoped(Global()),
    Scoped(Window(3, shift=True), "axis"),
    Scoped(Window(2), "joint"),
    Scoped(Grid(2), "axis"),
    Scoped(Axial()),
    Scoped(Neighborhood(3), "axis"),
    Scoped(PooledKeys(2)),
]


def all_pairs(layer, q, k, v, shape):
    """The formula in the dtype of its inputs."""
    (k, v), *_ = layer.pattern.pool((k, v), shape)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if layer.pattern.local:
        scores = scores + layer.bias_of(torch.arange(q.shape[2]), shape).to(q.dtype)
    return scores.softmax(3) @ v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
def test_as_exact_as_all_pairs_in_the_same_dtype(scoped, shape, dtype, monkeypatch, count_cases):
    """In tiles of 1, 7, N - 1, N and N + 5 queries and keys: at most 2 times the error, for gradients 3 times."""
    layer = scoped.layer(len(shape), backend="chunked").to(dtype)
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in tokens(shape)]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    table = None if layer.position_table is None else layer.position_table.detach().double().requires_grad_()
    expected = results(loops(scoped, shape, doubles, table)[0], doubles, table)
    plain = results(all_pairs(layer, *leaves, list(shape)), leaves, layer.position_table)
    count = math.prod(shape)
    for chunk in (1, 7, count - 1, count, count + 5):
        tile_bytes = 4 * BATCH * HEADS * chunk**2 if chunk > 1 else 1
        set_tile_bytes(monkeypatch, tile_bytes)
        found = results(layer(*leaves, list(shape)), leaves, layer.position_table)
        for name, value in found.items():
            assert value.dtype == dtype
            factor, right = (2 if name == "output" else 3), expected[name]
            allowed = factor * error_of(plain[name], right)
            # A twentieth of a unit, because the plain form may be exact by chance. The gradient of a table is a sum
            # over all queries in the order of the chunks, which may add an error of one unit.
            units = 1.0 if name == "table" else 0.05
            allowed += units * torch.finfo(dtype).eps * right.square().mean().sqrt().item()
            assert error_of(value, right) <= allowed, f"{name} in chunks of {chunk}"
        count_cases(2)  # forward and backward
