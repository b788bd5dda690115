"""No operator builds N x M scores, in any pattern, and the allocator reports no more memory than the budget."""

from __future__ import annotations

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window, attend
from attn3d.attention import VolumeAttention
from tests.attention.exactness import (
    EXACT,
    LAYOUTS,
)
from tests.attention.layers import Scoped
from tests.marks import some
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import volume
from tests.memory import peak

pytestmark = pytest.mark.usefixtures("on_the_cpu")


class TestAllPairs:
    """Only the "math" backend builds N x M scores."""

    COUNT = 512

    def leaves(self, layout="channels_first", value_width=8, heads=1):
        leaves = [volume(2, heads, self.COUNT, width).float() for width in (8, 8, value_width)]
        return [LAYOUTS[layout](leaf).requires_grad_() for leaf in leaves]

    def largest(self, leaves, **options):
        return largest_output(lambda: attend(*leaves, **options).sum().backward())

    @pytest.mark.parametrize("backend", EXACT)
    @pytest.mark.parametrize("value_width", [8, 5, 16])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_in_any_layout(self, layout, value_width, backend):
        found = self.largest(self.leaves(layout, value_width), backend=backend)
        assert found <= 4 * 2 * self.COUNT * 16

    @pytest.mark.parametrize("backend", EXACT)
    @pytest.mark.parametrize(
        "options",
        [
            {"key_mask": torch.arange(1024).view(2, 512) % 3 > 0},
            {"bias": torch.zeros(1, 1, 1, 512)},
            {"bias": torch.zeros(1, 1, 512, 1)},
        ],
        ids=["key_mask", "bias_of_keys", "bias_of_queries"],
    )
    def test_with_masks(self, options, backend):
        assert self.largest(self.leaves(), **options, backend=backend) <= 4 * 2 * self.COUNT * 16

    def test_with_dropout_and_a_trained_bias(self):
        bias = torch.zeros(1, 1, 1, self.COUNT, requires_grad=True)
        assert self.largest(self.leaves(), bias=bias) <= 4 * 2 * self.COUNT * 16
        assert self.largest(self.leaves(), dropout=0.1) <= 4 * 2 * self.COUNT * 16

    def test_the_check_detects_the_scores(self):
        """In the "math" backend, and in PyTorch's function on the views that mechanisms use."""
        pairs = 2 * self.COUNT**2
        assert self.largest(self.leaves(), backend="math") >= pairs
        q, k, v = self.leaves()
        assert largest_output(lambda: functional.scaled_dot_product_attention(q, k, v)) >= pairs

    @pytest.mark.parametrize("backend", EXACT)
    def test_at_sizes_that_do_not_fit(self, backend):
        """With fake tensors of 96^3 voxels, where all pairs would take 2.8 TiB."""
        with FakeTensorMode():
            leaves = [torch.empty(1, 1, 96**3, width, requires_grad=True) for width in (32, 32, 24)]
            key_mask = torch.ones(1, 96**3, dtype=torch.bool)
            assert self.largest(leaves, backend=backend) <= 2 * 32 * 96**3
            assert self.largest(leaves, key_mask=key_mask, backend=backend) <= 2 * 33 * 96**3


WIDTH, HEADS = 16, 2
SCOPED = [  # with a backend that does not gather many keys for each query
    (Scoped(Global()), "sdpa"),
    (Scoped(Global()), "chunked"),
    (Scoped(Window(8)), "sdpa"),
    (Scoped(Window(8, shift=True)), "chunked"),
    (Scoped(Window(8), "axis"), "chunked"),
    (Scoped(Window(8), "joint"), "chunked"),
    (Scoped(Grid(8)), "sdpa"),
    (Scoped(Grid(8), "axis"), "chunked"),
    (Scoped(Axial()), "chunked"),
    (Scoped(Neighborhood(3)), "sdpa"),
    (Scoped(Neighborhood(7), "axis"), "chunked"),
    (Scoped(PooledKeys(8)), "sdpa"),
    (Scoped(PooledKeys(8)), "chunked"),
]
THIRD_BY_DEFAULT = [
    pytest.param(*each, marks=[pytest.mark.nightly] if index % 3 else []) for index, each in enumerate(SCOPED)
]


def train(scoped, backend, extent):
    """A forward and a backward pass over a cube."""
    layer = VolumeAttention(3, HEADS, pattern=scoped.pattern, position_bias=scoped.position_bias, backend=backend)
    leaves = [torch.empty(1, HEADS, extent**3, WIDTH, requires_grad=True) for _ in range(3)]
    for leaf in leaves:
        leaf.data.fill_(0.1)
    return lambda: torch.autograd.grad(layer(*leaves, [extent] * 3).sum(), [*leaves, *layer.parameters()])


class TestWholeVolumes:
    """In every pattern, forward and backward, with and without a learnt position bias."""

    @pytest.mark.parametrize("extent", some([32, 64, 96], lambda extent: extent > 32))
    @pytest.mark.parametrize(("scoped", "backend"), THIRD_BY_DEFAULT, ids=str)
    def test_no_output_is_larger_than_eight_feature_maps(self, scoped, backend, extent):
        """Checked for every operator with fake tensors."""
        with FakeTensorMode():
            assert largest_output(train(scoped, backend, extent)) <= 8 * HEADS * WIDTH * extent**3

    @pytest.mark.parametrize("pattern", [Window(8), Grid(8), Neighborhood(7)], ids=str)
    def test_the_check_detects_the_math_backend(self, pattern):
        with FakeTensorMode():
            assert largest_output(train(Scoped(pattern), "math", 32)) >= 32**6

    @pytest.mark.parametrize("extents", some([(8, 16, 32), (8, 16, 32, 64)], lambda extents: 64 in extents), ids=str)
    @pytest.mark.parametrize(("scoped", "backend"), THIRD_BY_DEFAULT, ids=str)
    def test_memory_grows_with_the_voxels(self, scoped, backend, extents):
        """The estimate grows with a log-log slope of at most 1.05; that of "math" has a slope of 2."""

        def slope(backend):
            taken = [
                attn3d.estimate_memory(
                    ("mhsa", {"num_heads": HEADS, "pattern": scoped.pattern, "position_bias": scoped.position_bias}),
                    (1, HEADS * WIDTH, *[extent] * 3),
                    backend=backend,
                )
                for extent in extents
            ]
            logarithms = torch.tensor([[extent**3 for extent in extents], taken], dtype=torch.float64).log().mT
            centred = logarithms - logarithms.mean(0)
            return (centred[:, 0] @ centred[:, 1] / centred[:, 0].square().sum()).item()

        assert slope(backend) <= 1.05
        if scoped.name == "global":
            assert slope("math") > 1.8

    @pytest.mark.parametrize(("scoped", "backend"), SCOPED, ids=str)
    def test_inside_the_operators(self, scoped, backend):
        """Fake tensors do not show the memory inside operators: the allocator does, at a size without small tiles."""
        extent = 12
        run = train(scoped, backend, extent)
        run()  # the first call makes lasting allocations
        assert peak(run) <= peak(train(Scoped(Global()), "math", extent)) / 3


def passing(scoped, backend, training, budget, dtype=torch.float32, dropout=0.0):
    """A function that runs a layer with a budget and returns the output and the gradients."""
    layer = VolumeAttention(
        3,
        2,
        pattern=scoped.pattern,
        position_bias=scoped.position_bias,
        backend=backend,
        memory_budget=budget,
        dropout=dropout,
    ).to(dtype)
    leaves = [volume(1, 2, 240, 16, seed=seed).to(dtype).requires_grad_(training) for seed in range(3)]
    upstream = torch.ones(1, 2, 240, 16, dtype=dtype)

    def run():
        torch.manual_seed(0)
        with torch.set_grad_enabled(training):
            out = layer(*leaves, [6, 5, 8])
            return [out, *torch.autograd.grad(out, [*leaves, *layer.parameters()], upstream)] if training else [out]

    return run


def smallest(run):
    """The smallest possible budget, from the error message for a budget of 1 byte."""
    with pytest.raises(ValueError, match=r"`memory_budget` must be at least \d+ bytes.*, got 1$") as error:
        run()
    return int(re.search(r"at least (\d+) bytes", str(error.value))[1])


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("widths", [(16, 16), (16, 48), (48, 16)], ids=str)
@pytest.mark.parametrize("layout", ["heads_last", "channels_first", "part_of_qkv"])
def test_a_budget_includes_copies_of_queries_keys_and_values(layout, widths, backend):
    """Of layouts in which the heads of a token are apart, and of widths that the kernel needs to be equal."""
    leaves = [LAYOUTS[layout](volume(3, 2, 240, width).float()).requires_grad_() for width in (widths[0], *widths)]
    upstream = torch.ones(3, 2, 240, widths[1])

    def run_within(budget):
        layer = VolumeAttention(3, 2, pattern=Window(4), backend=backend, memory_budget=budget)
        return lambda: torch.autograd.grad(layer(*leaves, [6, 5, 8]), leaves, upstream)

    least = smallest(run_within(1))
    assert peak(run_within(least)) <= 1.02 * least


@pytest.mark.parametrize("width", [1, 4])
def test_a_budget_includes_the_sums_of_many_rows(width):
    """With narrow heads and few keys, they are a large part of the memory."""
    q, k, v = (volume(1, 1, count, width).float().requires_grad_() for count in (50_000, 2, 2))

    def run_within(budget):
        return lambda: attend(q, k, v, backend="chunked", memory_budget=budget).sum().backward()

    least = smallest(run_within(1))
    assert peak(run_within(least)) <= 1.02 * least


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", [Global(), Window(400)], ids=str)
def test_a_budget_includes_the_tiles_of_the_kernel(pattern, dtype):
    """In double precision its scores take twice the memory, and in half precision they have a copy."""
    leaves = [volume(1, 2, 960, 4, seed=seed).to(dtype).requires_grad_() for seed in range(3)]
    upstream = torch.ones(1, 2, 960, 4, dtype=dtype)

    def run_within(budget):
        layer = VolumeAttention(1, 2, pattern=pattern, backend="sdpa", memory_budget=budget)
        return lambda: torch.autograd.grad(layer(*leaves, [960]), leaves, upstream)

    least = smallest(run_within(1))
    run_within(least)()  # the first call makes lasting allocations
    assert peak(run_within(least)) <= 1.02 * least


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_budget_includes_another_layout_of_keys_and_values(dtype):
    """The kernel makes it in half precision if heads are wide and the processor multiplies in this precision."""
    q, k, v = (volume(8, 8, 64, 32, seed=seed).to(dtype) for seed in range(3))

    def run_within(budget):
        layer = VolumeAttention(1, 8, backend="sdpa", memory_budget=budget)
        return torch.no_grad()(lambda: layer(q, k, v, [64]))

    least = smallest(run_within(1))
    run_within(least)()  # the first call makes lasting allocations
    assert peak(run_within(least)) <= least


BUDGETED = [
    Scoped(Global()),
    Scoped(Window(4, shift=True), "axis"),
    Scoped(Window(4), "joint"),
    Scoped(Grid(3)),
    Scoped(Axial()),
    Scoped(Neighborhood(3), "axis"),
    Scoped(Neighborhood(3)),
]
WAYS = [
    (backend, dtype, dropout, training)
    for backend in ("auto", "chunked")
    for dtype in (torch.float32, torch.bfloat16)
    for dropout in (0.0, 0.3)
    for training in (True, False)
]
DEFAULT = [("auto", torch.float32, 0.0, True), ("chunked", torch.bfloat16, 0.3, True)]


@pytest.mark.parametrize("way", some(WAYS, lambda way: way not in DEFAULT), ids=str)
@pytest.mark.parametrize("scoped", BUDGETED, ids=str)
def test_a_budget_is_kept_and_changes_no_result(scoped, way):
    """Budgets from the smallest in the error message to 20 times that work; one byte less raises."""
    backend, dtype, dropout, training = way

    def run_within(budget):
        return passing(scoped, backend, training, budget, dtype, dropout)

    least = smallest(run_within(1))
    with pytest.raises(ValueError, match="`memory_budget` must be at least"):
        run_within(least - 1)()
    free = run_within(None)()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for budget in (least, 2 * least, 20 * least):
        run = run_within(budget)
        for found, expected in zip(run(), free, strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert peak(run) <= 1.02 * budget
