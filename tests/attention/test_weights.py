"""Bias, dropout and key mask of `attend`, which are the same in every backend."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

import attn3d
from attn3d import attend
from attn3d.attention.operator import attend_tiled
from tests.attention.exactness import (
    BACKENDS,
    BATCH,
    HEADS,
    KEYS,
    QUERIES,
    assert_as_reference,
    case,
    inputs,
    set_tile_bytes,
)
from tests.configurations import randomise
from tests.mechanisms.parity import assert_close, volume
from tests.references import attention as loops


class TestBias:
    """A trained bias of every shape that broadcasts."""

    SHAPES = tuple(itertools.product((1, BATCH), (1, HEADS), (1, QUERIES), (1, KEYS)))

    @pytest.mark.parametrize("backend", ["chunked", "math", "auto"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_its_gradient(self, shape, backend):
        leaves = [*inputs(), volume(*shape).requires_grad_()]
        full = leaves[3].expand(BATCH, HEADS, QUERIES, KEYS)
        expected, _ = loops.attend(*leaves[:3], bias=full)
        assert_as_reference(leaves, attend(*leaves[:3], bias=leaves[3], backend=backend), expected)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_its_gradient_by_tiles(self, shape, monkeypatch):
        set_tile_bytes(monkeypatch, 4 * BATCH * HEADS * 30)
        leaves = [*inputs(), volume(*shape).requires_grad_()]
        full = leaves[3].expand(BATCH, HEADS, QUERIES, KEYS)
        expected, _ = loops.attend(*leaves[:3], bias=full)
        found = attend_tiled(*leaves, None, None, 5**-0.5, 0.0, True, None)[0]
        assert_as_reference(leaves, found, expected)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_sdpa_adds_one_that_is_not_trained(self, shape):
        leaves, bias = inputs(), volume(*shape)
        expected, _ = loops.attend(*leaves, bias=bias.expand(BATCH, HEADS, QUERIES, KEYS))
        assert_as_reference(leaves, attend(*leaves, bias=bias, backend="sdpa"), expected)

    def test_only_the_bias_is_trained(self):
        q, k, v = (leaf.detach() for leaf in inputs())
        bias = volume(1, 1, QUERIES, KEYS).requires_grad_()
        found = attend(q, k, v, bias=bias)
        expected, _ = loops.attend(q, k, v, bias=bias)
        assert_as_reference([bias], found, expected)

    def test_a_larger_precision_than_the_inputs_is_kept(self):
        """A bias in single precision is not rounded to half like the inputs: 100.3 would become 100."""
        q, k, v = (leaf.detach().bfloat16() for leaf in inputs())
        bias = (100 + volume(1, 1, QUERIES, KEYS)).float()
        expected, _ = loops.attend(q.double(), k.double(), v.double(), bias=bias.double())
        for backend in ("auto", "chunked", "math"):
            found = attend(q, k, v, bias=bias, backend=backend)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
        with pytest.raises(ValueError, match="'sdpa' does not support a bias of higher precision than the queries"):
            attend(q, k, v, bias=bias, backend="sdpa")


class TestDropout:
    """The same weights are dropped in every backend, drawn from PyTorch's generator."""

    @pytest.mark.parametrize("backend", ["chunked", "math", "auto"])
    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
    def test_weights_are_dropped_or_raised_and_gradients_follow(self, probability, backend):
        """With identity values, the output is the weights, which shows what was kept."""
        q, k, v = inputs()
        identity = torch.eye(KEYS, dtype=torch.float64).expand(BATCH, HEADS, -1, -1)
        _, weights = loops.attend(q, k, v)
        torch.manual_seed(3)
        keep = (attend(q, k, identity, dropout=probability, backend=backend) / weights).detach()
        kept = keep > 0.5
        assert 0 < kept.double().mean() < 1
        torch.testing.assert_close(keep, kept.double() / (1 - probability), rtol=0, atol=1e-12)
        torch.manual_seed(3)
        found = attend(q, k, v, dropout=probability, backend=backend)
        expected, _ = loops.attend(q, k, v, keep=kept.double() / (1 - probability))
        assert_as_reference([q, k, v], found, expected)

    @pytest.mark.parametrize("mask", ["none", "keyless", "hiding_bias", "keys_and_bias"])
    def test_backends_drop_the_same(self, mask):
        (q, k, v), key_mask, bias, *_ = case(torch.float64, mask)
        outs = []
        for backend in ("math", "chunked"):
            torch.manual_seed(7)
            outs.append(attend(q, k, v, key_mask=key_mask, bias=bias, dropout=0.3, backend=backend))
        assert_close(outs[1], outs[0], 1e-14)

    def test_the_tiles_do_not_matter(self, monkeypatch):
        (q, k, v), outs = inputs(), []
        for tile_bytes in (1, 600, 2**20):
            set_tile_bytes(monkeypatch, tile_bytes)
            outs.append(attend_tiled(q, k, v, None, None, torch.tensor(9), 0.4, 0.3, True, None)[0])
        assert_close(outs[0], outs[2], 1e-14)
        assert_close(outs[1], outs[2], 1e-14)

    def test_draws_differ(self):
        """Between calls, batch items and heads."""
        q, k, v = (leaf[:1, :1].expand(2, 2, -1, -1) for leaf in inputs())
        first, second = (attend(q, k, v, dropout=0.5) for _ in range(2))
        assert not torch.equal(first, second)
        alike = [torch.equal(one, other) for one, other in itertools.combinations(first.flatten(0, 1), 2)]
        assert not any(alike)

    def test_the_mean_is_that_without_dropout(self):
        """Over many draws, to five standard errors."""
        draws = 4096
        q, k, v = (leaf.detach()[:1] for leaf in inputs(3, 4))
        drawn = attend(*(tensor.expand(draws, -1, -1, -1) for tensor in (q, k, v)), dropout=0.4)
        error = 5 * drawn.std(0) / math.sqrt(draws)
        assert ((drawn.mean(0) - attend(q, k, v)[0]).abs() < error).all()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("pattern", ["global", ("window", {"size": 2}), "axial"], ids=str)
    def test_self_attention_drops_only_in_training(self, pattern, backend):
        options = {"num_heads": 2, "pattern": pattern}
        x = volume(2, 4, 3, 4)
        without = randomise(attn3d.MultiHeadSelfAttention(2, 4, **options).double()).eval()
        module = randomise(attn3d.MultiHeadSelfAttention(2, 4, dropout=0.9, backend=backend, **options).double())
        assert_close(module.eval()(x), without(x), 1e-14)
        if backend == "sdpa":
            with pytest.raises(ValueError, match="`backend` 'sdpa' does not support dropout on the weights"):
                module.train()(x)
        else:
            assert not torch.allclose(module.train()(x), without(x))


class TestKeyMask:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_hidden_keys_do_not_change_a_bit(self, dtype):
        """The values of hidden keys change no bit of the output or of a gradient."""
        q, k, v = (leaf.detach().to(dtype).requires_grad_() for leaf in inputs(64, 48, 16, 16))
        key_mask = torch.arange(BATCH * 48).view(BATCH, 48) % 3 > 0
        other = torch.where(key_mask[:, None, :, None], 1.0, -7.0).to(dtype)
        results = []
        for keys, values in ((k, v), (k * other, v * other)):
            found = attend(q, keys, values, key_mask=key_mask, backend="sdpa", scale=0.25)
            results.append([found, *torch.autograd.grad(found, (q, k, v), volume(*found.shape).to(dtype))])
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_it_equals_a_boolean_mask(self, dtype):
        """Outputs and gradients agree to a few units in the last place."""
        q, k, v = (leaf.detach().to(dtype).requires_grad_() for leaf in inputs(64, 48, 16, 16))
        key_mask = torch.arange(BATCH * 48).view(BATCH, 48) % 3 > 0
        found = attend(q, k, v, key_mask=key_mask, backend="sdpa", scale=0.25)
        boolean = functional.scaled_dot_product_attention(q, k, v, key_mask[:, None, None], scale=0.25)
        upstream = volume(*found.shape).to(dtype)
        gradients = [torch.autograd.grad(out, (q, k, v), upstream) for out in (found, boolean)]
        for one, other in zip((found, *gradients[0]), (boolean, *gradients[1]), strict=True):
            assert_close(one, other, 4 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_hidden_keys_may_have_any_value(self, backend):
        """Large masked scores add nothing, and hidden keys get no gradient."""
        q, k, v = inputs()
        key_mask = torch.arange(KEYS).expand(BATCH, -1) < 6
        large = torch.where(key_mask[:, None, :, None], 1.0, 1e6).double()
        found = attend(q, k * large, v, key_mask=key_mask, backend=backend)
        expected = attend(q, k[:, :, :6], v[:, :, :6], backend="math")
        assert_close(found, expected, 1e-13)
        for gradient in torch.autograd.grad(found.sum(), (k, v)):
            assert (gradient[:, :, 6:] == 0).all()
            assert (gradient[:, :, :6] != 0).any()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_item_without_a_key_gives_zero_and_no_gradient(self, backend):
        leaves = inputs()
        key_mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
        key_mask[0] = False
        found = attend(*leaves, key_mask=key_mask, backend=backend)
        assert (found[0] == 0).all()
        assert (found[1] != 0).all()
        for gradient in torch.autograd.grad(found.sum(), leaves):
            assert (gradient[0] == 0).all()
