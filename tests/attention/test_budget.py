"""A budget is kept, by what the allocator reports; and where it cannot be, the error says what would do."""

from __future__ import annotations

import math
import re

import pytest
import torch

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window, attend
from attn3d.attention import VolumeAttention
from attn3d.attention.memory import read_bytes
from tests.attention.layers import Scoped
from tests.marks import some
from tests.mechanisms.parity import volume
from tests.memory import peak

SHAPE = [6, 5, 8]
SCOPED = [
    Scoped(Global()),
    Scoped(Window(4, shift=True), "axis"),
    Scoped(Window(4), "joint"),
    Scoped(Grid(3)),
    Scoped(Axial()),
    Scoped(Neighborhood(3), "axis"),
    Scoped(PooledKeys(3)),
]
SERVED = [
    pytest.param(scoped, method, marks=pytest.mark.nightly if method == "auto" else ())
    for scoped in SCOPED
    for method in ("chunked", "fused", "auto")
    if method != "fused" or (scoped.name != "axial" and scoped.position_bias != "joint")
]


def leaves(training):
    return [volume(1, 2, math.prod(SHAPE), 16, seed=seed).float().requires_grad_(training) for seed in range(3)]


def passing(scoped, method, training, budget):
    """A pass of a layer with a budget, and what it gives."""
    layer = VolumeAttention(
        3, 2, scope=scoped.scope, position_bias=scoped.position_bias, method=method, memory_budget=budget
    )
    inputs = leaves(training)
    upstream = torch.ones(1, 2, inputs[0].shape[2], 16)

    def run():
        with torch.set_grad_enabled(training):
            out = layer(*inputs, SHAPE)
            return [out, *torch.autograd.grad(out, [*inputs, *layer.parameters()], upstream)] if training else [out]

    return run


def smallest(run):
    """The budget that the error of one that cannot be met proposes."""
    with pytest.raises(ValueError, match="`memory_budget` of 1 bytes cannot be met") as error:
        run()
    return int(re.search(r"so that (\d+) is the smallest that works", str(error.value))[1])


@pytest.mark.parametrize("training", some([True, False], lambda training: not training), ids=["training", "forward"])
@pytest.mark.parametrize(("scoped", "method"), SERVED, ids=str)
def test_a_budget_is_kept_and_changes_no_result(scoped, method, training):
    """From the smallest that works, as the error says, to much more; one byte less is refused."""
    least = smallest(passing(scoped, method, training, 1))
    with pytest.raises(ValueError, match="so that"):
        passing(scoped, method, training, least - 1)()
    free = passing(scoped, method, training, None)()
    for budget in (least, 2 * least, 20 * least):
        run = passing(scoped, method, training, budget)
        for found, expected in zip(run(), free, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert peak(run) <= 1.02 * budget


@pytest.mark.parametrize("options", ["key_mask", "bias", "dropout", "widths", "views"])
@pytest.mark.parametrize("method", some(["auto", "chunked", "fused"], lambda method: method == "auto"))
def test_of_attend(method, options):
    q, k, v = leaves(True)
    given = {
        "key_mask": {"key_mask": torch.arange(240).view(1, -1) % 3 > 0},
        "bias": {"bias": torch.zeros(1, 2, 1, 240, requires_grad=True)},
        "dropout": {"dropout": 0.3},
    }.get(options, {})
    if options == "widths":
        v = v[..., :5].detach().requires_grad_()
    if options == "views":
        q, k, v = (x.detach().mT.contiguous().requires_grad_() for x in (q, k, v))
    if method == "fused" and options in ("bias", "dropout"):
        return
    upstream = torch.ones(1, 2, 240, v.shape[2 if options == "views" else 3])

    def run(budget):
        tokens = (x.mT if options == "views" else x for x in (q, k, v))
        out = attend(*tokens, **given, method=method, memory_budget=budget)
        return torch.autograd.grad(out, [q, k, v], upstream)

    least = smallest(lambda: run(1))
    for budget in (least, 3 * least):
        run(budget)
        assert peak(lambda budget=budget: run(budget)) <= 1.02 * budget
    with pytest.raises(ValueError, match=f"memory_budget` of {least - 1} bytes"):
        run(least - 1)


class TestError:
    def test_names_methods_and_the_smallest_budget(self):
        with pytest.raises(
            ValueError, match=r"'fused' takes at least (\d+) and 'chunked' takes at least (\d+)"
        ) as error:
            attend(*leaves(True), memory_budget=1000)
        assert "`memory_budget` of 1000 bytes" in str(error.value)
        assert "scope" not in str(error.value)
        of_fused, of_chunked, least = map(int, re.findall(r"\d{5,}", str(error.value)))
        assert least == min(of_fused, of_chunked)

    def test_names_the_scopes_that_would_fit(self):
        """And these do."""
        budget = 400_000
        with pytest.raises(ValueError, match=r"within 400000 bytes there would be the scopes Global\(\), ") as error:
            attn3d.NonLocal(3, 16, scope="axial", memory_budget=budget)(torch.randn(1, 16, 12, 12, 12))
        named = str(error.value).partition("scopes ")[2]
        scopes = re.findall(r"\w+\([^)]*\)", named)
        assert "Axial()" not in scopes
        assert "Global()" in scopes
        for scope in scopes:
            net = attn3d.NonLocal(3, 16, scope=eval(scope), memory_budget=budget)
            assert net(torch.randn(1, 16, 12, 12, 12)).isfinite().all()

    def test_says_that_none_would(self):
        net = attn3d.NonLocal(3, 16, memory_budget="64KiB")
        with pytest.raises(ValueError, match="no scope would fit, since the output and, in training, the gradients"):
            net(torch.randn(1, 16, 12, 12, 12))

    @pytest.mark.parametrize("value", ["-1MiB", "1 parsec", "MiB", ""])
    def test_what_is_no_number_of_bytes(self, value):
        with pytest.raises(ValueError, match="`memory_budget` must be bytes"):
            attn3d.NonLocal(3, 4, memory_budget=value)

    @pytest.mark.parametrize("value", [1.5, True, [1]])
    def test_what_is_of_a_wrong_type(self, value):
        with pytest.raises(TypeError, match="`memory_budget` must be a number of bytes"):
            attn3d.NonLocal(3, 4, memory_budget=value)

    def test_what_is_not_positive(self):
        with pytest.raises(ValueError, match="`memory_budget` must be positive, got 0"):
            attn3d.NonLocal(3, 4, memory_budget=0)


def test_units():
    assert [read_bytes("memory", text) for text in ("1KiB", "1.5 MiB", "2gb", "3B")] == [1024, 1572864, 2 * 10**9, 3]
