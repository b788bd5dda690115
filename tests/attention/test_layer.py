"""Attention over volumes: every pattern in every backend and dimension against loops over coordinates."""

from __future__ import annotations

import math

import pytest
import torch

import attn3d
from attn3d import Axial, Global, Window
from attn3d.attention import ChannelwiseAttention, Features, RotaryPosition, VolumeAttention
from attn3d.attention import layer as layers
from tests.attention.layers import (
    ANISOTROPIC,
    BACKENDS,
    HEADS,
    PATTERNS,
    SHAPES,
    Captured,
    assert_equal_to_the_loops,
    assert_results,
    build,
    case,
    is_supported,
    layer_of,
    loops,
    results,
    tokens,
)
from tests.marks import some
from tests.mechanisms.parity import assert_close, volume

SUPPORTED = [(scoped, backend) for scoped in PATTERNS for backend in BACKENDS if is_supported(scoped, backend)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", some(SHAPES, lambda shape: SHAPES.index(shape) % 2), ids=str)
@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
def test_equals_the_loops(scoped, shape, backend):
    assert_equal_to_the_loops(scoped, shape, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scoped", ANISOTROPIC, ids=str)
def test_a_different_size_along_each_axis(scoped, backend):
    assert_equal_to_the_loops(scoped, (3, 5, 6), backend)


class TestDropout:
    @pytest.mark.parametrize("scoped", [scoped for scoped in PATTERNS if scoped.name != "pooled_keys"], ids=str)
    def test_backends_drop_the_same_weights(self, scoped):
        """The plain form draws for N x N pairs, the tiles for those within groups."""
        leaves, found = tokens((5, 7)), []
        for backend in ("math", "chunked"):
            layer = scoped.layer(2, backend=backend, dropout=0.4)
            torch.manual_seed(2)
            found.append(results(layer(*leaves, [5, 7]), leaves, layer.position_table))
        without = scoped.layer(2)(*leaves, [5, 7])
        assert not torch.allclose(found[0]["output"], without)
        assert_results(found[1], found[0])

    @pytest.mark.parametrize("scoped", PATTERNS, ids=str)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_off_in_evaluation(self, backend, scoped):
        layer = build(scoped, 2, backend, dropout=0.9).eval().requires_grad_(False)
        leaves, reference = case(scoped, (5, 7))
        assert_close(layer(*leaves, [5, 7]), reference["output"])

    @pytest.mark.parametrize("scoped", PATTERNS, ids=str)
    def test_the_captured_form_keeps_the_mean(self, scoped):
        """It drops other weights, with PyTorch's dropout; the mean over many draws agrees to five standard errors."""
        draws, shape = 2000, (3, 4)
        torch.manual_seed(0)
        q, k, v = (leaf[:1, :1].detach().float() for leaf in tokens(shape))
        scoped = scoped._replace(position_bias=None)
        drawn = Captured(scoped.layer(2, 1, dropout=0.3).float())(
            *(tensor.expand(draws, -1, -1, -1) for tensor in (q, k, v)), list(shape)
        )
        expected = scoped.layer(2, 1).float()(q, k, v, list(shape))
        assert ((drawn.mean(0) - expected[0]).abs() < 5 * drawn.std(0) / math.sqrt(draws)).all()


class TestPrecision:
    @pytest.mark.parametrize(("scoped", "backend"), SUPPORTED, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_half_and_single(self, dtype, backend, scoped):
        """With inputs and tables of lower precision, the output is that of float64 to a few units in the last place."""
        layer = build(scoped, 2, backend).to(dtype)
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in tokens((5, 7))]
        table = None if layer.position_table is None else layer.position_table.detach().double()
        reference, _ = loops(scoped, (5, 7), [leaf.detach().double() for leaf in leaves], table)
        found = layer(*leaves, [5, 7])
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), reference, rtol=0, atol=8 * torch.finfo(dtype).eps)
        gradients = torch.autograd.grad(found.sum(), [*leaves, *layer.parameters()])
        assert all(gradient.isfinite().all() and gradient.dtype == dtype for gradient in gradients)

    @pytest.mark.parametrize(("scoped", "backend"), SUPPORTED, ids=str)
    def test_large_logits_in_half_stay_finite(self, backend, scoped):
        """Scale 1 and products past the largest number in half precision."""
        layer = build(scoped, 2, backend, scale=1.0).half()
        q, k, v = (leaf.detach() for leaf in tokens((5, 7)))
        q, k, v = (200 + q).half().requires_grad_(), (200 + k.round()).half(), v.half()  # exact means of keys
        assert (q.double() @ k.double().transpose(2, 3)).min() > 1e5
        table = None if layer.position_table is None else layer.position_table.detach().double()
        reference, _ = loops(scoped, (5, 7), [q.double(), k.double(), v.double()], table, scale=1.0)
        found = layer(q, k, v, [5, 7])
        torch.testing.assert_close(found.double(), reference, rtol=0, atol=0.02)
        assert torch.autograd.grad(found.sum(), q)[0].isfinite().all()

    @pytest.mark.parametrize(("scoped", "backend"), [one for one in SUPPORTED if one[1] != "captured"], ids=str)
    @pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_does_not_change_the_result(self, autocast, backend, scoped):
        layer = scoped.layer(2, backend=backend).float()
        leaves = [leaf.detach().float() for leaf in tokens((5, 7))]
        expected = layer(*leaves, [5, 7])
        with torch.autocast("cpu", autocast):
            found = layer(*leaves, [5, 7])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("pattern", [Global(), Window(3), Axial()], ids=str)
    @pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_with_unprojected_queries_and_keys(self, autocast, pattern):
        """In the Gaussian non-local block, autocast casts the values but not the queries and keys."""
        module = attn3d.NonLocal(2, 4, mode="gaussian", pattern=pattern, norm=None)
        x = volume(1, 4, 32, 32).float() / 2
        expected = module(x)
        with torch.autocast("cpu", autocast):
            found = module(x)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)


class TestBatches:
    @pytest.mark.parametrize(("scoped", "backend"), SUPPORTED, ids=str)
    @pytest.mark.parametrize("batch", [0, 1])
    def test_zero_and_one(self, batch, backend, scoped):
        layer = layer_of(scoped, 2, backend)
        leaves = [leaf.detach()[:batch].requires_grad_() for leaf in tokens((5, 7))]
        found = layer(*leaves, [5, 7])
        assert_close(found, case(scoped, (5, 7))[1]["output"][:batch]) if batch else None
        assert found.shape == (batch, HEADS, 35, 4)
        gradients = torch.autograd.grad(found.sum(), leaves)
        assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]

    def test_an_empty_batch_builds_no_pairs(self, monkeypatch):
        monkeypatch.setattr(layers.VolumeAttention, "bias_of", None)
        layer, leaves = layer_of(PATTERNS[3], 2, "auto"), [leaf[:0] for leaf in tokens((5, 7))]
        layer(*leaves, [5, 7]).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())

    @pytest.mark.parametrize(("scoped", "backend"), SUPPORTED, ids=str)
    def test_views(self, backend, scoped):
        """Views with the heads inside the channels, as projections give them."""
        leaves, reference = case(scoped, (5, 7))
        views = [leaf.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for leaf in leaves]
        assert not any(view.is_contiguous() for view in views)
        assert_close(layer_of(scoped, 2, backend)(*views, [5, 7]), reference["output"])


@pytest.mark.parametrize(
    ("position_bias", "pattern"),
    [("axis", "axial"), ("joint", ("neighborhood", {"size": 3})), ("axis", "global"), ("joint", "global")],
)
def test_a_position_bias_needs_a_pattern_of_fixed_size(position_bias, pattern):
    with pytest.raises(ValueError, match=f"`position_bias` '{position_bias}' needs a pattern of fixed size that"):
        attn3d.MultiHeadSelfAttention(3, 4, pattern=pattern, position_bias=position_bias)


@pytest.mark.parametrize(
    ("backend", "budget", "chosen"),
    [("auto", None, "attend_captured"), ("auto", "1GiB", "attend_groups"), ("sdpa", "1GiB", "attend_captured")],
)
def test_a_budget_means_tiles_on_other_devices(backend, budget, chosen, monkeypatch):
    """On other devices than the CPU, PyTorch's kernel needs all groups in memory at once."""
    taken = []
    for name in ("attend_captured", "attend_groups"):
        run = getattr(layers, name)
        monkeypatch.setattr(layers, name, lambda *args, name=name, run=run: taken.append(name) or run(*args))
    leaves = [leaf.detach().to("meta") for leaf in tokens((5, 7))]
    layer = VolumeAttention(2, HEADS, pattern=Window(3), backend=backend, memory_budget=budget)
    assert layer(*leaves, [5, 7]).shape == (*leaves[0].shape[:3], 4)
    assert taken == [chosen]


@pytest.mark.scorecard("errors")
@pytest.mark.parametrize(
    ("layer", "arguments", "argument"),
    [
        (VolumeAttention, {"spatial_dims": 4, "heads": 2}, "spatial_dims"),
        (VolumeAttention, {"spatial_dims": 2, "heads": 2.0}, "heads"),
        (VolumeAttention, {"spatial_dims": 2, "heads": 2, "scale": "1"}, "scale"),
        (VolumeAttention, {"spatial_dims": 2, "heads": 2, "features": "rope"}, "features"),
        (Features, {"spatial_dims": 4, "heads": 2, "head_dim": 8}, "spatial_dims"),
        (Features, {"spatial_dims": 2, "heads": 0, "head_dim": 8}, "heads"),
        (Features, {"spatial_dims": 2, "heads": 2, "head_dim": "8"}, "head_dim"),
        (RotaryPosition, {"spatial_dims": 0, "heads": 2, "head_dim": 8}, "spatial_dims"),
        (ChannelwiseAttention, {"heads": -1}, "heads"),
    ],
)
def test_a_wrong_argument_of_a_layer(layer, arguments, argument):
    """The error names it and its value."""
    with pytest.raises((TypeError, ValueError), match=f"`{argument}` must be .*, got {arguments[argument]!r}"):
        layer(**arguments)
