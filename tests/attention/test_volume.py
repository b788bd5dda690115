"""Every scope in every method and dimension against loops over coordinates."""

from __future__ import annotations

import math

import pytest
import torch

import attn3d
from attn3d import Axial, Global, Window
from attn3d.attention import VolumeAttention
from tests.attention.layers import (
    ANISOTROPIC,
    HEADS,
    METHODS,
    SCOPES,
    SHAPES,
    assert_equal_to_the_loops,
    assert_results,
    case,
    layer_of,
    loops,
    results,
    tokens,
)
from tests.marks import some
from tests.mechanisms.parity import assert_close, volume


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", some(SHAPES, lambda shape: SHAPES.index(shape) % 2), ids=str)
@pytest.mark.parametrize("scoped", SCOPES, ids=str)
def test_equals_the_loops(scoped, shape, method):
    assert_equal_to_the_loops(scoped, shape, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scoped", ANISOTROPIC, ids=str)
def test_sizes_of_their_own_for_every_axis(scoped, method):
    assert_equal_to_the_loops(scoped, (3, 5, 6), method)


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


@pytest.mark.parametrize(
    ("position_bias", "scope", "message"),
    [
        (
            "axis",
            "axial",
            "`position_bias` 'axis' needs a scope of fixed size, window or grid or neighborhood, got Axial",
        ),
        (
            "joint",
            ("neighborhood", {"size": 3}),
            "`position_bias` 'joint' needs a scope of fixed size, window or grid,",
        ),
        ("axis", "global", "`position_bias` 'axis' needs .* got Global"),
    ],
)
def test_a_position_bias_needs_a_scope_of_fixed_size(position_bias, scope, message):
    with pytest.raises(ValueError, match=message):
        attn3d.MultiHeadSelfAttention(3, 4, scope=scope, position_bias=position_bias)


@pytest.mark.parametrize("scope", ["global", ("pooled_keys", {"stride": 2})])
def test_a_scope_that_adds_nothing_has_no_bias(scope):
    with pytest.raises(ValueError, match="adds nothing"):
        VolumeAttention(2, 1, scope=scope).bias_of(torch.arange(4), [2, 2])
