"""N x M is never built: by no operator, in no scope, and not inside of the operators."""

from __future__ import annotations

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


class TestAllPairs:
    """N x M is never built, but by the reference."""

    COUNT = 512

    def leaves(self, layout="channels_first", value_width=8, heads=1):
        leaves = [volume(2, heads, self.COUNT, width).float() for width in (8, 8, value_width)]
        return [LAYOUTS[layout](leaf).requires_grad_() for leaf in leaves]

    def largest(self, leaves, **options):
        return largest_output(lambda: attend(*leaves, **options).sum().backward())

    @pytest.mark.parametrize("method", EXACT)
    @pytest.mark.parametrize("value_width", [8, 5, 16])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_in_any_layout(self, layout, value_width, method):
        found = self.largest(self.leaves(layout, value_width), method=method)
        assert found <= 4 * 2 * self.COUNT * 16

    @pytest.mark.parametrize("method", EXACT)
    @pytest.mark.parametrize(
        "options",
        [
            {"key_mask": torch.arange(1024).view(2, 512) % 3 > 0},
            {"bias": torch.zeros(1, 1, 1, 512)},
            {"bias": torch.zeros(1, 1, 512, 1)},
        ],
        ids=["key_mask", "bias_of_keys", "bias_of_queries"],
    )
    def test_with_masks(self, options, method):
        assert self.largest(self.leaves(), **options, method=method) <= 4 * 2 * self.COUNT * 16

    def test_with_dropout_and_a_trained_bias(self):
        bias = torch.zeros(1, 1, 1, self.COUNT, requires_grad=True)
        assert self.largest(self.leaves(), bias=bias) <= 4 * 2 * self.COUNT * 16
        assert self.largest(self.leaves(), dropout=0.1) <= 4 * 2 * self.COUNT * 16

    def test_the_check_sees_who_does(self):
        """The reference, and PyTorch's function on the views that mechanisms have."""
        pairs = 2 * self.COUNT**2
        assert self.largest(self.leaves(), method="reference") >= pairs
        q, k, v = self.leaves()
        assert largest_output(lambda: functional.scaled_dot_product_attention(q, k, v)) >= pairs

    @pytest.mark.parametrize("method", EXACT)
    def test_at_sizes_that_do_not_fit(self, method):
        """With tensors that hold nothing: 96^3 voxels, whose pairs would take 2.8 TiB."""
        with FakeTensorMode():
            leaves = [torch.empty(1, 1, 96**3, width, requires_grad=True) for width in (32, 32, 24)]
            key_mask = torch.ones(1, 96**3, dtype=torch.bool)
            assert self.largest(leaves, method=method) <= 2 * 32 * 96**3
            assert self.largest(leaves, key_mask=key_mask, method=method) <= 2 * 33 * 96**3


WIDTH, HEADS = 16, 2
SCOPED = [  # with the methods that serve it without gathering many keys for every query
    (Scoped(Global()), "fused"),
    (Scoped(Global()), "chunked"),
    (Scoped(Window(8)), "fused"),
    (Scoped(Window(8, shift=True)), "chunked"),
    (Scoped(Window(8), "axis"), "chunked"),
    (Scoped(Window(8), "joint"), "chunked"),
    (Scoped(Grid(8)), "fused"),
    (Scoped(Grid(8), "axis"), "chunked"),
    (Scoped(Axial()), "chunked"),
    (Scoped(Neighborhood(3)), "fused"),
    (Scoped(Neighborhood(7), "axis"), "chunked"),
    (Scoped(PooledKeys(8)), "fused"),
    (Scoped(PooledKeys(8)), "chunked"),
]


def train(scoped, method, extent):
    """A forward and a backward pass over a cube."""
    layer = VolumeAttention(3, HEADS, scope=scoped.scope, position_bias=scoped.position_bias, method=method)
    leaves = [torch.empty(1, HEADS, extent**3, WIDTH, requires_grad=True) for _ in range(3)]
    for leaf in leaves:
        leaf.data.fill_(0.1)
    return lambda: torch.autograd.grad(layer(*leaves, [extent] * 3).sum(), [*leaves, *layer.parameters()])


class TestWholeVolumes:
    """In every scope, forward and backward, also where a position bias is learnt."""

    @pytest.mark.parametrize("extent", some([64, 96], lambda extent: extent == 96))
    @pytest.mark.parametrize(("scoped", "method"), SCOPED, ids=str)
    def test_no_output_is_larger_than_eight_feature_maps(self, scoped, method, extent):
        """Of any operator; tensors hold nothing."""
        with FakeTensorMode():
            assert largest_output(train(scoped, method, extent)) <= 8 * HEADS * WIDTH * extent**3

    @pytest.mark.parametrize("scope", [Window(8), Grid(8), Neighborhood(7)], ids=str)
    def test_the_check_sees_the_reference(self, scope):
        with FakeTensorMode():
            assert largest_output(train(Scoped(scope), "reference", 64)) >= 64**6

    @pytest.mark.parametrize(("scoped", "method"), SCOPED, ids=str)
    def test_memory_grows_with_the_voxels(self, scoped, method):
        """Foretold from 8^3 to 64^3: a slope of at most 1.05 of the logarithms, where the reference has 2."""

        def slope(method, extents):
            taken = [
                attn3d.estimate_memory(
                    ("mhsa", {"num_heads": HEADS, "scope": scoped.scope, "position_bias": scoped.position_bias}),
                    (1, HEADS * WIDTH, *[extent] * 3),
                    method=method,
                )
                for extent in extents
            ]
            logarithms = torch.tensor([[extent**3 for extent in extents], taken], dtype=torch.float64).log().mT
            centred = logarithms - logarithms.mean(0)
            return (centred[:, 0] @ centred[:, 1] / centred[:, 0].square().sum()).item()

        assert slope(method, (8, 16, 32, 64)) <= 1.05
        if scoped.name == "global":
            assert slope("reference", (8, 16, 32, 64)) > 1.8

    @pytest.mark.parametrize(("scoped", "method"), SCOPED, ids=str)
    def test_inside_of_the_operators(self, scoped, method):
        """Which tensors without memory do not show: what the allocator gives, at a size of no small tiles."""
        extent = 12
        run = train(scoped, method, extent)
        run()  # first calls allocate what stays
        assert peak(run) <= peak(train(Scoped(Global()), "reference", extent)) / 3
