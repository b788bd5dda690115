"""A budget is kept, by what the allocator reports; and where it cannot be, the error says what would do."""

from __future__ import annotations

import math
import re

import pytest
import torch
from attn3d.attention.budget import (
    LEAST_ROOM,
    cells_bytes,
    chunked_bytes,
    fused_bytes,
    fused_cells_bytes,
    pooling_bytes,
    room_for_cells,
    room_for_scores,
    scopes_of_axes,
)

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window, attend
from attn3d.attention import VolumeAttention
from attn3d.attention.memory import TILE_BYTES, read_bytes
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
    # What is refused would really not fit: the most is counted as if all steps met, which those of few bytes do not.
    assert peak(passing(scoped, method, training, least)) >= (0.5 if scoped.name == "pooled_keys" else 0.68) * least


# (queries, keys, width, width of the values): of each something else takes the most.
SIZES = [(400, 30, 40, 8), (30, 400, 40, 8), (400, 30, 8, 40), (30, 400, 8, 40), (400, 400, 4, 4)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "forward"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("method", ["chunked", "fused"])
def test_the_smallest_budget_is_what_is_taken(method, sizes, masked, training):
    """Neither less nor much more: of the kernel's copies, those of backward and of a mask are not all alive at once."""
    queries, keys, width, value_width = sizes
    shapes = ((queries, width), (keys, width), (keys, value_width))
    leaves = [volume(2, 1, *shape).float().requires_grad_(training) for shape in shapes]
    key_mask = torch.arange(2 * keys).view(2, keys) % 3 > 0 if masked else None
    upstream = torch.ones(2, 1, queries, value_width)

    def run(budget):
        out = attend(*leaves, key_mask=key_mask, method=method, memory_budget=budget)
        return torch.autograd.grad(out, leaves, upstream) if training else out

    least = smallest(lambda: run(1))
    run(least)
    taken = peak(lambda: run(least))
    assert taken <= 1.05 * least
    counted = 0.95 if method == "chunked" else 0.53 if training else 0.68 if masked else 0.98
    assert taken >= counted * least


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


@pytest.mark.parametrize(
    ("text", "count"),
    [("3B", 3), ("1KiB", 1024), ("1.5 MiB", 1572864), (" 2gib ", 2**31), ("1TiB", 2**40)]
    + [("2 kB", 2000), ("7MB", 7 * 10**6), ("2gb", 2 * 10**9), ("0.5KB", 500)],
)
def test_units(text, count):
    assert read_bytes("memory", text) == count


class TestWhileACompilerLooksOn:
    """Sizes may be symbols then: what goes with a tile of scores is left out."""

    @pytest.fixture(autouse=True)
    def compiling(self, monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    # Two batch entries, three heads, 5 queries, 7 keys, widths 4 and 8.
    OUTPUT = 2 * 3 * 5 * (8 + 1) * 4  # and the log-sum-exp of the rows
    GRADIENTS = 2 * 3 * (5 * 4 + 7 * 4 + 7 * 8) * 4

    @staticmethod
    def leaves(training=False):
        sizes = ((5, 4), (7, 4), (7, 8))
        return [torch.zeros(2, 3, *size, requires_grad=training) for size in sizes]

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("dropout", [False, True])
    def test_tiles_are_counted_by_their_scores(self, dropout, training):
        copies = (2 if training else 1) + (6 if dropout else 0)
        fixed = self.OUTPUT + training * self.GRADIENTS + dropout * 8 * (2 * 3 * 5 + 7)
        leaves = self.leaves(training)
        assert chunked_bytes(*leaves, None, dropout, 1000) == fixed + 1000 * copies
        for room, expected in ((3000, 3000), (10, LEAST_ROOM), (10**9, TILE_BYTES)):
            limit = fixed + copies * room
            assert room_for_scores(*leaves, None, 0.5 * dropout, limit) == expected
            of_cells = ([5], ["window"], [2], [1], False)
            assert room_for_cells(*leaves, None, False, dropout, *of_cells, limit) == expected

    @pytest.mark.parametrize("training", [False, True])
    def test_cells_are_counted_by_their_scores(self, training):
        leaves = self.leaves(training)
        of_cells = (None, False, False, [5])
        found = cells_bytes(*leaves, *of_cells, ["window"], [2], [1], False, 1000)
        assert found == self.OUTPUT + training * self.GRADIENTS + 1000 * (2 if training else 1)
        found = cells_bytes(*leaves, *of_cells, ["line,point", "point,line"], [1], [1], False, 1000)
        merged = 2 * self.OUTPUT + 5 * 2 * 3 * 5 * 8 * 4  # weighed, stacked and summed
        assert found == merged + training * 2 * self.GRADIENTS + 1000 * (2 if training else 1)

    def test_the_kernel_is_counted_by_what_it_copies(self):
        """Queries and keys are widened to the values; the output is as wide, with the log-sum-exp of the rows."""
        leaves = self.leaves()
        expected = 2 * 3 * ((5 + 7) * 8 + 5 * 8 + 5) * 4
        assert fused_bytes(*leaves, None) == expected
        assert fused_cells_bytes(*leaves, None, [5], "window", [2], [1], False) == expected

    def test_a_bias_that_is_learnt_takes_its_gradient(self):
        leaves, bias = self.leaves(), torch.zeros(1, 3, 5, 7, requires_grad=True)
        without = chunked_bytes(*leaves, bias.detach(), False, 1000)
        assert chunked_bytes(*leaves, bias, False, 1000) == without + self.GRADIENTS + 3 * 5 * 7 * 4 + 1000


def test_the_room_for_scores_without_a_budget():
    leaves = leaves_of(3)
    assert room_for_scores(*leaves, None, 0.0, None) == TILE_BYTES
    assert room_for_cells(*leaves, None, False, False, [3], ["line"], [1], [1], False, None) == TILE_BYTES


def leaves_of(count):
    return [torch.zeros(1, 1, count, 4) for _ in range(3)]


def test_the_lines_of_axial_are_scopes_of_their_own():
    assert scopes_of_axes("axial", 3) == ["line,point,point", "point,line,point", "point,point,line"]
    assert scopes_of_axes("grid", 2) == ["grid,grid"]


def test_what_means_take():
    """Those along the first axis are the most, and in training the gradients of what they are means of."""
    q, k, v = (torch.zeros(1, 2, 5 * 6, width) for width in (3, 3, 4))
    means = 2 * (2 * 3 * 6 * (3 + 4)) * 4  # keys and values, and the sums that they are divided from
    assert pooling_bytes(q, k, v, [5, 6], [2, 3]) == means
    assert pooling_bytes(q.requires_grad_(), k, v, [5, 6], [2, 3]) == means + 2 * 30 * (3 + 4) * 4


@pytest.mark.parametrize("scope", [Window(4), Neighborhood(3)], ids=str)
@pytest.mark.parametrize("width", [2, 30])
def test_cells_of_values_wider_or_narrower_than_the_keys(width, scope):
    """What is gathered of either is counted by its own width."""
    q, k, v = (volume(1, 2, 240, of).float() for of in (16, 16, width))

    def run(limit):
        return VolumeAttention(3, 2, scope=scope, method="chunked", memory_budget=limit)(q, k, v, SHAPE)

    least = smallest(lambda: run(1))
    run(least)
    assert 0.8 * least <= peak(lambda: run(least)) <= 1.05 * least
