"""Every scope in every method and dimension against loops over coordinates; specs, and errors."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Scope, VolumeAttention
from attn3d.attention.scopes import create_scope, name_of
from tests.attention.layers import HEADS, Scoped, assert_results, loops, results, tokens
from tests.marks import some
from tests.mechanisms.parity import assert_close, volume
from tests.references.attention import keys_seen, pool

# Size 1, smaller than a window, equal to it, prime, a multiple, one more than a multiple.
SHAPES = [(1,), (2,), (7,), (8,), (13,), (1, 6), (5, 7), (9, 1), (4, 8), (3, 4, 5), (1, 5, 6), (2, 1, 7), (7, 3, 3)]
SCOPES = [
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
    Scoped(PooledKeys(2)),
    Scoped(PooledKeys(3)),
]
# Sizes of their own along every axis, for the shape (3, 5, 6).
ANISOTROPIC = [
    Scoped(Window((1, 2, 4), shift=True), "axis"),
    Scoped(Window((2, 7, 7), shift=True), "joint"),
    Scoped(Window((1, 1, 1)), "axis"),
    Scoped(Grid((3, 1, 4)), "joint"),
    Scoped(Grid((9, 2, 5)), "axis"),
    Scoped(Neighborhood((1, 3, 5)), "axis"),
    Scoped(Neighborhood((3, 5, 3), dilation=(1, 2, 4)), "axis"),
    Scoped(PooledKeys((1, 2, 4))),
    Scoped(PooledKeys((9, 5, 1))),
]
METHODS = ["chunked", "fused", "reference", "auto", "scripted"]


@functools.cache
def case(scoped, shape):
    """Inputs, and what the reference makes of them with the position table that every layer here has."""
    leaves, table = tokens(shape), scoped.layer(len(shape)).position_table
    return leaves, results(loops(scoped, shape, leaves, table)[0], leaves, table)


@functools.cache
def layer_of(scoped, spatial_dims, method):
    if method == "scripted":
        return torch.jit.script(scoped.layer(spatial_dims))
    return scoped.layer(spatial_dims, method=method)


def assert_equal_to_the_loops(scoped, shape, method):
    leaves, reference = case(scoped, shape)
    layer = layer_of(scoped, len(shape), method)
    if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
        with pytest.raises(ValueError, match="`method` 'fused' does not serve"):
            layer(*leaves, list(shape))
        return
    assert_results(results(layer(*leaves, list(shape)), leaves, layer.position_table), reference)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", some(SHAPES, lambda shape: SHAPES.index(shape) % 2), ids=str)
@pytest.mark.parametrize("scoped", SCOPES, ids=str)
def test_equals_the_loops(scoped, shape, method):
    assert_equal_to_the_loops(scoped, shape, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scoped", ANISOTROPIC, ids=str)
def test_sizes_of_their_own_for_every_axis(scoped, method):
    assert_equal_to_the_loops(scoped, (3, 5, 6), method)


@pytest.mark.parametrize("bytes", some([600, 5_000, 100_000], lambda room: room != 5_000))
@pytest.mark.parametrize("scoped", SCOPES, ids=str)
def test_a_few_cells_at_a_time(scoped, bytes, monkeypatch):
    """Tiles smaller than a cell, one cell, and several: the same outputs and gradients."""
    monkeypatch.setattr("attn3d.attention.volume.room_for_scores", lambda *_: bytes)
    monkeypatch.setattr("attn3d.attention.methods.room_for_scores", lambda *_: bytes)
    assert_equal_to_the_loops(scoped, (5, 7), "chunked")


class TestRules:
    """What the rules of the references say, so that both are not wrong alike."""

    @staticmethod
    def seen(scoped, shape, voxel):
        rule = scoped.rule(len(shape))
        keys = keys_seen(rule, voxel, shape)
        assert len(keys) == len(set(keys))
        assert voxel in keys
        return keys if len(shape) > 1 else [place for (place,) in keys]

    def test_windows(self):
        scoped = Scoped(Window(4))
        assert [self.seen(scoped, (10,), (i,)) for i in (0, 4, 9)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_shifted_windows_do_not_see_across_the_border(self):
        scoped = Scoped(Window(4, shift=True))
        assert [self.seen(scoped, (9,), (i,)) for i in (1, 2, 8)] == [[0, 1], [2, 3, 4, 5], [6, 7, 8]]
        assert self.seen(scoped, (4,), (0,)) == [0, 1, 2, 3]

    def test_grids(self):
        scoped = Scoped(Grid(3))
        assert [self.seen(scoped, (8,), (i,)) for i in (0, 1, 5)] == [[0, 3, 6], [1, 4, 7], [2, 5]]

    def test_lines(self):
        assert self.seen(Scoped(Axial()), (3, 3), (1, 2)) == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 2)]

    def test_neighbourhoods_slide_inward(self):
        scoped = Scoped(Neighborhood(5))
        found = [self.seen(scoped, (8,), (i,)) for i in (0, 1, 3, 6, 7)]
        assert found == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [3, 4, 5, 6, 7]]

    def test_dilated_neighbourhoods_are_clipped_to_what_every_remainder_has(self):
        scoped = Scoped(Neighborhood(5, dilation=3))
        assert [self.seen(scoped, (11,), (i,)) for i in (0, 4, 10)] == [[0, 3, 6], [1, 4, 7], [4, 7, 10]]

    @pytest.mark.parametrize("scope", [Neighborhood(3), Neighborhood(7), Neighborhood(3, 2)], ids=str)
    @pytest.mark.parametrize("shape", [(5,), (9, 4), (3, 4, 6)], ids=str)
    def test_every_voxel_has_equally_many_neighbours(self, shape, scope):
        layer = Scoped(scope).layer(len(shape))
        q, k, _ = tokens(shape)
        rows = layer.rows(q, k, torch.arange(q.shape[2]), list(shape)).flatten(3)
        counts = (rows > 0).sum(3)
        assert (counts == counts[0, 0, 0]).all()

    def test_pooled_keys_are_means_of_what_a_cell_has(self):
        values = torch.arange(7.0, dtype=torch.float64).view(1, 1, 7, 1)
        assert pool(values, (7,), (3,)).flatten().tolist() == [1.0, 4.0, 6.0]


class TestPadding:
    """What fills up a cell is never seen."""

    @pytest.mark.parametrize("scoped", [Scoped(Window(4)), Scoped(Grid(4)),
                                        Scoped(Window(4, shift=True))], ids=str)  # fmt: skip
    @pytest.mark.parametrize("method", ["chunked", "fused", "scripted"])
    def test_values_that_are_all_one_give_one(self, method, scoped):
        """A zero among the values would lower the mean, whatever the weights."""
        q, k, v = tokens((5, 6))
        found = layer_of(scoped, 2, method)(q, k, torch.ones_like(v), [5, 6])
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("method", ["chunked", "fused", "scripted"])
    def test_the_voxel_that_stands_in_for_it_is_not_seen(self, method):
        """Nor has its loudness any effect."""
        scoped = Scoped(Window(4))
        q, k, v = (leaf.detach() for leaf in tokens((5, 6)))
        layer = layer_of(scoped, 2, method)
        before = layer(q, k, v, [5, 6])
        k[:, :, 0], v[:, :, 0] = 1e4, 1e6
        after = layer(q, k, v, [5, 6])
        seen = torch.zeros(5, 6, dtype=torch.bool)
        seen[:4, :4] = True  # the window of the first voxel
        assert torch.equal(after[:, :, ~seen.flatten()], before[:, :, ~seen.flatten()])
        assert not torch.equal(after[:, :, seen.flatten()], before[:, :, seen.flatten()])


class TestClippedWindow:
    """A window larger than an axis: the entries of its table are those of the offsets that are left."""

    @pytest.mark.parametrize("method", ["chunked", "reference", "scripted"])
    @pytest.mark.parametrize("scope", [Window, Grid])
    @pytest.mark.parametrize("position_bias", ["axis", "joint"])
    def test_only_offsets_that_occur_are_trained(self, position_bias, scope, method):
        """And they are found by their distance from the middle of the table."""
        scoped = Scoped(scope((2, 7)), position_bias)
        layer = layer_of(scoped, 2, method)
        leaves = tokens((4, 3))
        (gradient,) = torch.autograd.grad(layer(*leaves, [4, 3]).square().sum(), layer.position_table)
        moved = gradient.abs().sum(0) > 0
        if position_bias == "joint":
            expected = torch.zeros(3, 13, dtype=torch.bool)
            expected[:, 6 - 2 : 6 + 3] = True
        else:
            expected = torch.zeros(16, dtype=torch.bool)
            expected[:3] = expected[3 + 6 - 2 : 3 + 6 + 3] = True
        assert torch.equal(moved, expected.flatten())


class TestDropout:
    @pytest.mark.parametrize("scoped", [scoped for scoped in SCOPES if scoped.name != "pooled_keys"], ids=str)
    def test_methods_drop_the_same_weights(self, scoped):
        """The reference draws over N x N, the tiles within cells."""
        leaves, found = tokens((5, 7)), []
        for method in ("reference", "chunked"):
            layer = scoped.layer(2, method=method, dropout=0.4)
            torch.manual_seed(2)
            found.append(results(layer(*leaves, [5, 7]), leaves, layer.position_table))
        without = scoped.layer(2)(*leaves, [5, 7])
        assert not torch.allclose(found[0]["output"], without)
        assert_results(found[1], found[0])

    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_off_in_evaluation(self, method, scoped):
        if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
            method = "auto"
        layer = scoped.layer(2, dropout=0.9, method="auto" if method == "scripted" else method).eval()
        layer = torch.jit.script(layer) if method == "scripted" else layer
        leaves, reference = case(scoped, (5, 7))
        assert_close(layer(*leaves, [5, 7]), reference["output"])

    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    def test_the_scripted_form_keeps_the_mean(self, scoped):
        """It draws others, by PyTorch's own dropout; the mean over many is the same, to five standard errors."""
        draws, shape = 2000, (3, 4)
        torch.manual_seed(0)
        q, k, v = (leaf[:1, :1].detach().float() for leaf in tokens(shape))
        scoped = scoped._replace(position_bias=None)
        drawn = torch.jit.script(scoped.layer(2, 1, dropout=0.3).float())(
            *(tensor.expand(draws, -1, -1, -1) for tensor in (q, k, v)), list(shape)
        )
        expected = scoped.layer(2, 1).float()(q, k, v, list(shape))
        assert ((drawn.mean(0) - expected[0]).abs() < 5 * drawn.std(0) / math.sqrt(draws)).all()


class TestPrecision:
    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_half_and_single(self, dtype, method, scoped):
        """Inputs, and tables, of lower precision: the output is that of float64 to a few units of the last place."""
        if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
            return
        layer = scoped.layer(2, method="auto" if method == "scripted" else method).to(dtype)
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in tokens((5, 7))]
        if method == "fused" and dtype == torch.float16 and scoped.name not in ("global", "pooled_keys"):
            with pytest.raises(ValueError, match="does not serve cells in half precision"):
                layer(*leaves, [5, 7])
            return
        table = None if layer.position_table is None else layer.position_table.detach().double()
        reference, _ = loops(scoped, (5, 7), [leaf.detach().double() for leaf in leaves], table)
        found = (torch.jit.script(layer) if method == "scripted" else layer)(*leaves, [5, 7])
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), reference, rtol=0, atol=8 * torch.finfo(dtype).eps)
        gradients = torch.autograd.grad(found.sum(), [*leaves, *layer.parameters()])
        assert all(gradient.isfinite().all() and gradient.dtype == dtype for gradient in gradients)

    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_large_logits_in_half_stay_finite(self, method, scoped):
        """Scale 1 and products past the largest number in half precision."""
        if method == "fused" and scoped.name not in ("global", "pooled_keys"):
            return
        layer = scoped.layer(2, scale=1.0, method="auto" if method == "scripted" else method).half()
        q, k, v = (leaf.detach() for leaf in tokens((5, 7)))
        q, k, v = (200 + q).half().requires_grad_(), (200 + k).half(), v.half()
        assert (q.double() @ k.double().transpose(2, 3)).min() > 1e5
        table = None if layer.position_table is None else layer.position_table.detach().double()
        reference, _ = loops(scoped, (5, 7), [q.double(), k.double(), v.double()], table, scale=1.0)
        found = (torch.jit.script(layer) if method == "scripted" else layer)(q, k, v, [5, 7])
        tolerance = 0.02 if scoped.name != "pooled_keys" else 4.0  # means of large keys round to a unit
        torch.testing.assert_close(found.double(), reference, rtol=0, atol=tolerance)
        assert torch.autograd.grad(found.sum(), q)[0].isfinite().all()

    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", ["chunked", "fused", "reference", "auto"])
    @pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_does_not_change_the_result(self, autocast, method, scoped):
        if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
            return
        layer = scoped.layer(2, method=method).float()
        leaves = [leaf.detach().float() for leaf in tokens((5, 7))]
        expected = layer(*leaves, [5, 7])
        with torch.autocast("cpu", autocast):
            found = layer(*leaves, [5, 7])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("scope", [Global(), Window(3), Axial()], ids=str)
    @pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
    def test_voxels_compared_as_they_are_meet_values_that_autocast_has_cast(self, autocast, scope):
        """As in the Gaussian non-local block, which has no projections of queries and keys."""
        module = attn3d.NonLocal(2, 4, mode="gaussian", scope=scope, norm=None)
        x = volume(1, 4, 32, 32).float() / 2
        expected = module(x)
        with torch.autocast("cpu", autocast):
            found = module(x)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)


class TestBatches:
    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("batch", [0, 1])
    def test_none_and_one(self, batch, method, scoped):
        if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
            return
        layer = layer_of(scoped, 2, method)
        leaves = [leaf.detach()[:batch].requires_grad_() for leaf in tokens((5, 7))]
        found = layer(*leaves, [5, 7])
        assert_close(found, case(scoped, (5, 7))[1]["output"][:batch]) if batch else None
        assert found.shape == (batch, HEADS, 35, 4)
        gradients = torch.autograd.grad(found.sum(), leaves)
        assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]

    @pytest.mark.parametrize("scoped", SCOPES, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_views(self, method, scoped):
        """Heads inside of the channels, as projections leave them."""
        if method == "fused" and (scoped.name == "axial" or scoped.position_bias == "joint"):
            return
        leaves, reference = case(scoped, (5, 7))
        views = [leaf.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for leaf in leaves]
        assert not any(view.is_contiguous() for view in views)
        assert_close(layer_of(scoped, 2, method)(*views, [5, 7]), reference["output"])


SPECS = {
    "global": Global(),
    "axial": Axial(),
    ("window", (("size", 8), ("shift", True))): Window(8, shift=True),
    ("window", (("size", (4, 8, 8)),)): Window((4, 8, 8)),
    ("grid", (("size", 4),)): Grid(4),
    ("neighborhood", (("size", 7), ("dilation", 2))): Neighborhood(7, 2),
    ("pooled_keys", (("stride", (1, 2, 2)),)): PooledKeys((1, 2, 2)),
}


class TestSpecs:
    @pytest.mark.parametrize(("spec", "scope"), SPECS.items(), ids=str)
    def test_a_name_and_options_give_the_scope(self, spec, scope):
        """As in Python, and with the lists of YAML and JSON."""
        if isinstance(spec, tuple):
            name, options = spec[0], dict(spec[1])
            as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
            assert create_scope((name, options)) == create_scope([name, as_lists]) == scope
        else:
            assert create_scope(spec) == create_scope((spec,)) == create_scope((spec, {})) == scope
        assert create_scope(scope) is scope
        assert create_scope((name_of(scope), vars(scope))) == scope

    @pytest.mark.parametrize("scope", SPECS.values(), ids=str)
    def test_frozen_hashable_and_shown(self, scope):
        assert {scope: 1}[scope] == 1
        assert eval(repr(scope)) == scope
        with pytest.raises(AttributeError):
            scope.size = 3

    def test_lists_are_frozen(self):
        assert hash(Window([4, 8])) == hash(Window((4, 8)))
        assert hash(Neighborhood([3, 5], [1, 2])) == hash(Neighborhood((3, 5), (1, 2)))
        assert hash(PooledKeys([4, 8])) == hash(PooledKeys((4, 8)))
        assert hash(Grid([4, 8])) == hash(Grid((4, 8)))

    @pytest.mark.parametrize(
        "mechanism", [attn3d.NonLocal, attn3d.MultiHeadSelfAttention, attn3d.DualAttention, attn3d.PositionAttention]
    )
    def test_every_mechanism_takes_them(self, mechanism):
        x = volume(1, 8, 3, 5, 6).float()
        torch.manual_seed(0)
        module = mechanism(3, 8, scope=Window((1, 2, 3), shift=True))
        torch.manual_seed(0)
        same = mechanism(3, 8, scope=["window", {"size": [1, 2, 3], "shift": True}])
        assert torch.equal(module(x), same(x))
        assert "Window(size=(1, 2, 3), shift=True)" in repr(module)

    @pytest.mark.parametrize(
        ("scope", "message"),
        [
            ("windw", r"`scope` got 'windw'; did you mean 'window'\? available: global, window, grid"),
            (("window", {"size": 4, "shfit": True}), r"has no option `shfit`; did you mean 'shift'\?"),
            (("window", {}), "the scope 'window' needs the option `size`"),
            (("neighborhood", {"dilation": 2}), "the scope 'neighborhood' needs the option `size`"),
            (("window", {"size": 4, "shift": "false"}), "`shift` must be True or False, got 'false'"),
            (("global", {"size": 4}), "the scope 'global' has no option `size`"),
            (3, r'`scope` must be a name or \("name", {options}\), got 3'),
            (Global, "`scope` must be .*, got <class"),
            (Scope(), "`scope` must be one of Global, Window, .*, got Scope"),
            (Window(0), "`size` must be at least 1, got 0"),
            (Window((4, 8, 8)), r"`size` must be an integer or one for each of 2 axes, got \(4, 8, 8\)"),
            (Window("8"), "`size` must be an integer or one for each of 2 axes, got '8'"),
            (Window(8.0), "`size` must be an integer or one for each of 2 axes, got 8.0"),
            (Window(None), "`size` must be an integer or one for each of 2 axes, got None"),
            (Window(True), "`size` must be an integer or one for each of 2 axes, got True"),
            (Window((4.0, 4)), "`size` must be an integer, got 4.0"),
            (Grid(-2), "`size` must be at least 1, got -2"),
            (Neighborhood(4), "`size` must be odd, got 4"),
            (Neighborhood(3, 0), "`dilation` must be at least 1, got 0"),
            (Neighborhood(3, (1, 2, 3)), "`dilation` must be an integer or one for each of 2 axes"),
            (PooledKeys(0), "`stride` must be at least 1, got 0"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_named(self, scope, message):
        with pytest.raises((ValueError, TypeError), match=message):
            VolumeAttention(2, 2, scope=scope)
