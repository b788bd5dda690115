"""`attend`: every method against loops in float64, what each refuses, and that none builds N x M."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import attn3d
from attn3d import attend
from attn3d.attention.operators import attend_tiled
from tests.attention.exactness import (
    BATCH,
    DTYPES,
    HEADS,
    KEYS,
    MASKS,
    QUERIES,
    SCALE,
    assert_as_exact_as_the_plain_form,
    case,
)
from tests.configurations import randomise
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.references import attention as loops

METHODS = ["fused", "chunked", "reference", "auto"]
EXACT = ["fused", "chunked", "auto"]


def inputs(queries=QUERIES, keys=KEYS, width=5, value_width=6, batch=BATCH, heads=HEADS):
    sizes = [(queries, width), (keys, width), (keys, value_width)]
    return [volume(batch, heads, *size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]


def assert_as_reference(leaves, found, expected):
    assert_close(found, expected, 1e-12)
    assert_gradients_close(found, leaves, expected, leaves, [str(place) for place in range(len(leaves))])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_the_plain_form(dtype, mask, method):
    """Output and gradients, with a key mask, a batch item without a key, a bias, and a bias that hides."""

    def run(q, k, v, key_mask, bias):
        return attend(q, k, v, key_mask=key_mask, bias=bias, method=method)

    if method == "fused" and dtype == torch.float16 and mask.startswith("key"):
        with pytest.raises(ValueError, match="`method` 'fused' does not serve a key mask in half precision"):
            attend(*case(dtype, mask).inputs, key_mask=case(dtype, mask).key_mask, method=method)
        return
    assert_as_exact_as_the_plain_form(run, dtype, mask, trains_the_bias=method != "fused")


@pytest.mark.parametrize("pairs", [1, 49, (QUERIES - 1) ** 2, QUERIES**2, (QUERIES + 5) ** 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator_is_as_exact_in_any_room(dtype, mask, pairs):
    """Tiles of as many pairs as there is room for; a room of one byte has one pair."""
    room = 4 * BATCH * HEADS * pairs if pairs > 1 else 1

    def run(q, k, v, key_mask, bias):
        return attend_tiled(q, k, v, bias, key_mask, None, SCALE, 0.0, room)[0]

    assert_as_exact_as_the_plain_form(run, dtype, mask)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("widths", [(1, 1), (4, 4), (3, 8), (8, 3), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("counts", [(1, 1), (1, 9), (9, 1), (16, 16)], ids=str)
def test_any_widths_and_counts(counts, widths, method):
    leaves = inputs(*counts, *widths)
    expected, _ = loops.attend(*leaves)
    assert_as_reference(leaves, attend(*leaves, method=method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 2.5])
def test_the_scale_multiplies_the_products(scale, method):
    """And neither the bias nor the mask."""
    leaves = inputs()
    bias = volume(BATCH, 1, QUERIES, 1) + volume(1, HEADS, 1, KEYS)
    key_mask = torch.arange(BATCH * KEYS).view(BATCH, KEYS) % 4 > 0
    expected, _ = loops.attend(*leaves, scale=scale, bias=bias, key_mask=key_mask)
    found = attend(*leaves, scale=scale, bias=bias, key_mask=key_mask, method=method)
    assert_as_reference(leaves, found, expected)


LAYOUTS = {
    "channels_first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "heads_last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "heads_inside": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "every_second": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "every_second_channel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda x: torch.cat([x, x, x])[2:4],
    "part_of_qkv": lambda x: torch.stack([x, x, x], 2).unbind(2)[1],
    "one_for_all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "one_for_all_heads": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [1, 4])
def test_any_layout_in_memory(width, layout, method):
    """What a view of a volume, of stacked projections or of shared keys looks like."""
    leaves = inputs(9, 9, width, width)
    views = [LAYOUTS[layout](leaf) for leaf in leaves]
    expected, _ = loops.attend(*(view.contiguous() for view in views))
    found = attend(*views, method=method)
    assert_as_reference(leaves, found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_channel_of_one_in_channels_first(method):
    """PyTorch calls it contiguous whatever its last stride is, and its kernels look at the stride."""
    leaf = volume(2, 1, 30).requires_grad_()
    tokens = leaf.transpose(1, 2).unsqueeze(1)
    assert tokens.stride(-1) != 1
    expected, _ = loops.attend(tokens, tokens, tokens)
    assert_as_reference([leaf], attend(tokens, tokens, tokens, method=method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch, method):
    leaves = inputs(batch=batch)
    found = attend(*leaves, method=method)
    assert found.shape == (batch, HEADS, QUERIES, 6)
    gradients = torch.autograd.grad(found.sum(), leaves)
    assert [grad.shape for grad in gradients] == [leaf.shape for leaf in leaves]


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_not_changed(method):
    leaves = [leaf.detach() for leaf in inputs()]
    bias, key_mask = volume(1, 1, QUERIES, KEYS), torch.arange(BATCH * KEYS).view(BATCH, KEYS) % 2 > 0
    before = [tensor.clone() for tensor in (*leaves, bias, key_mask)]
    attend(*leaves, bias=bias, key_mask=key_mask, method=method)
    for tensor, copy in zip((*leaves, bias, key_mask), before, strict=True):
        assert torch.equal(tensor, copy)


class TestBias:
    """A bias that is trained, of every shape that broadcasts."""

    SHAPES = tuple(itertools.product((1, BATCH), (1, HEADS), (1, QUERIES), (1, KEYS)))

    @pytest.mark.parametrize("method", ["chunked", "reference", "auto"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_its_gradient(self, shape, method):
        leaves = [*inputs(), volume(*shape).requires_grad_()]
        full = leaves[3].expand(BATCH, HEADS, QUERIES, KEYS)
        expected, _ = loops.attend(*leaves[:3], bias=full)
        assert_as_reference(leaves, attend(*leaves[:3], bias=leaves[3], method=method), expected)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_its_gradient_by_tiles(self, shape):
        leaves = [*inputs(), volume(*shape).requires_grad_()]
        full = leaves[3].expand(BATCH, HEADS, QUERIES, KEYS)
        expected, _ = loops.attend(*leaves[:3], bias=full)
        found = attend_tiled(*leaves, None, None, 5**-0.5, 0.0, 4 * BATCH * HEADS * 30)[0]
        assert_as_reference(leaves, found, expected)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_fused_adds_one_that_is_not_trained(self, shape):
        leaves, bias = inputs(), volume(*shape)
        expected, _ = loops.attend(*leaves, bias=bias.expand(BATCH, HEADS, QUERIES, KEYS))
        assert_as_reference(leaves, attend(*leaves, bias=bias, method="fused"), expected)

    def test_only_the_bias_is_trained(self):
        q, k, v = (leaf.detach() for leaf in inputs())
        bias = volume(1, 1, QUERIES, KEYS).requires_grad_()
        found = attend(q, k, v, bias=bias)
        expected, _ = loops.attend(q, k, v, bias=bias)
        assert_as_reference([bias], found, expected)

    def test_a_larger_precision_than_the_inputs_is_kept(self):
        """A bias in single precision beside inputs in half is not rounded to half: 100.3 would become 100."""
        q, k, v = (leaf.detach().bfloat16() for leaf in inputs())
        bias = (100 + volume(1, 1, QUERIES, KEYS)).float()
        expected, _ = loops.attend(q.double(), k.double(), v.double(), bias=bias.double())
        for method in ("auto", "chunked", "reference"):
            found = attend(q, k, v, bias=bias, method=method)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
        with pytest.raises(ValueError, match="'fused' does not serve a bias of higher precision than the queries"):
            attend(q, k, v, bias=bias, method="fused")


class TestDropout:
    """The same weights are dropped in every method, drawn from PyTorch's generator."""

    @pytest.mark.parametrize("method", ["chunked", "reference", "auto"])
    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
    def test_weights_are_dropped_or_raised_and_gradients_follow(self, probability, method):
        """With identity values the output is the weights, from which follows what was kept."""
        q, k, v = inputs()
        identity = torch.eye(KEYS, dtype=torch.float64).expand(BATCH, HEADS, -1, -1)
        _, weights = loops.attend(q, k, v)
        torch.manual_seed(3)
        keep = (attend(q, k, identity, dropout=probability, method=method) / weights).detach()
        kept = keep > 0.5
        assert 0 < kept.double().mean() < 1
        torch.testing.assert_close(keep, kept.double() / (1 - probability), rtol=0, atol=1e-12)
        torch.manual_seed(3)
        found = attend(q, k, v, dropout=probability, method=method)
        expected, _ = loops.attend(q, k, v, keep=kept.double() / (1 - probability))
        assert_as_reference([q, k, v], found, expected)

    @pytest.mark.parametrize("mask", ["none", "keyless", "hiding_bias", "keys_and_bias"])
    def test_methods_drop_the_same(self, mask):
        (q, k, v), key_mask, bias, *_ = case(torch.float64, mask)
        outs = []
        for method in ("reference", "chunked"):
            torch.manual_seed(7)
            outs.append(attend(q, k, v, key_mask=key_mask, bias=bias, dropout=0.3, method=method))
        assert_close(outs[1], outs[0], 1e-14)

    def test_the_room_does_not_matter(self):
        q, k, v = inputs()
        outs = [attend_tiled(q, k, v, None, None, torch.tensor(9), 0.4, 0.3, room)[0] for room in (1, 600, 2**20)]
        assert_close(outs[0], outs[2], 1e-14)
        assert_close(outs[1], outs[2], 1e-14)

    def test_draws_differ(self):
        """From call to call, between batch items and between heads."""
        q, k, v = (leaf[:1, :1].expand(2, 2, -1, -1) for leaf in inputs())
        first, second = (attend(q, k, v, dropout=0.5) for _ in range(2))
        assert not torch.equal(first, second)
        alike = [torch.equal(one, other) for one, other in itertools.combinations(first.flatten(0, 1), 2)]
        assert not any(alike)

    def test_the_mean_is_that_without(self):
        """Over many draws, to five standard errors."""
        draws = 4096
        q, k, v = (leaf.detach()[:1] for leaf in inputs(3, 4))
        drawn = attend(*(tensor.expand(draws, -1, -1, -1) for tensor in (q, k, v)), dropout=0.4)
        error = 5 * drawn.std(0) / math.sqrt(draws)
        assert ((drawn.mean(0) - attend(q, k, v)[0]).abs() < error).all()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("scope", ["global", ("window", {"size": 2}), "axial"], ids=str)
    def test_self_attention_drops_in_training_alone(self, scope, method):
        options = {"num_heads": 2, "scope": scope}
        x = volume(2, 4, 3, 4)
        without = randomise(attn3d.MultiHeadSelfAttention(2, 4, **options).double()).eval()
        if method == "fused" and scope == "axial":
            method = "auto"
        module = randomise(attn3d.MultiHeadSelfAttention(2, 4, dropout=0.9, method=method, **options).double())
        assert_close(module.eval()(x), without(x), 1e-14)
        if method == "fused":
            with pytest.raises(ValueError, match="`method` 'fused' does not serve dropout on the weights"):
                module.train()(x)
        else:
            assert not torch.allclose(module.train()(x), without(x))


class TestKeyMask:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_folding_it_is_exact(self, dtype):
        """What is hidden does not change a bit, of the output or of a gradient."""
        q, k, v = (leaf.detach().to(dtype).requires_grad_() for leaf in inputs(64, 48, 16, 16))
        key_mask = torch.arange(BATCH * 48).view(BATCH, 48) % 3 > 0
        other = torch.where(key_mask[:, None, :, None], 1.0, -7.0).to(dtype)
        results = []
        for keys, values in ((k, v), (k * other, v * other)):
            found = attend(q, keys, values, key_mask=key_mask, method="fused", scale=0.25)
            results.append([found, *torch.autograd.grad(found, (q, k, v), volume(*found.shape).to(dtype))])
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_folding_it_equals_a_boolean_mask(self, dtype):
        """In outputs and gradients, to a few units in the last place."""
        q, k, v = (leaf.detach().to(dtype).requires_grad_() for leaf in inputs(64, 48, 16, 16))
        key_mask = torch.arange(BATCH * 48).view(BATCH, 48) % 3 > 0
        found = attend(q, k, v, key_mask=key_mask, method="fused", scale=0.25)
        boolean = functional.scaled_dot_product_attention(q, k, v, key_mask[:, None, None], scale=0.25)
        upstream = volume(*found.shape).to(dtype)
        gradients = [torch.autograd.grad(out, (q, k, v), upstream) for out in (found, boolean)]
        for one, other in zip((found, *gradients[0]), (boolean, *gradients[1]), strict=True):
            assert_close(one, other, 4 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("method", METHODS)
    def test_what_it_hides_may_be_anything(self, method):
        """Large scores behind the mask add nothing, and what is hidden gets no gradient."""
        q, k, v = inputs()
        key_mask = torch.arange(KEYS).expand(BATCH, -1) < 6
        large = torch.where(key_mask[:, None, :, None], 1.0, 1e6).double()
        found = attend(q, k * large, v, key_mask=key_mask, method=method)
        expected = attend(q, k[:, :, :6], v[:, :, :6], method="reference")
        assert_close(found, expected, 1e-13)
        for gradient in torch.autograd.grad(found.sum(), (k, v)):
            assert (gradient[:, :, 6:] == 0).all()
            assert (gradient[:, :, :6] != 0).any()

    @pytest.mark.parametrize("method", METHODS)
    def test_an_item_without_a_key_gives_zero_and_no_gradient(self, method):
        leaves = inputs()
        key_mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
        key_mask[0] = False
        found = attend(*leaves, key_mask=key_mask, method=method)
        assert (found[0] == 0).all()
        assert (found[1] != 0).all()
        for gradient in torch.autograd.grad(found.sum(), leaves):
            assert (gradient[0] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_stay_finite(dtype, method):
    """Scale 1 and products of 1e5, past the largest number in half precision."""
    q = torch.full((1, 1, 6, 64), 40.0)
    q[:, :, ::2] *= -1
    q[:, :, 2:] += volume(1, 1, 4, 64).float() * 0.1
    q, v = q.to(dtype).requires_grad_(), volume(1, 1, 6, 8).to(dtype)
    assert (q.double() @ q.double().transpose(2, 3)).max() > 1e5
    found = attend(q, q, v, scale=1.0, method=method)
    expected, _ = loops.attend(q.double(), q.double(), v.double(), scale=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * 1.5)
    (gradient,) = torch.autograd.grad(found.sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", ["none", "keyless", "bias"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_change_the_result(autocast, mask, method):
    """The precision is that of the inputs, so that no method differs from another."""
    q, k, v = (leaf.detach().float() for leaf in inputs())
    _, key_mask, bias, *_ = case(torch.float32, mask)
    expected = attend(q, k, v, key_mask=key_mask, bias=bias, method=method)
    with torch.autocast("cpu", autocast):
        found = attend(q, k, v, key_mask=key_mask, bias=bias, method=method)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize("method", METHODS)
def test_keys_and_values_are_taken_in_the_dtype_of_the_queries(method):
    """Under autocast, voxels that are compared as they are meet values that a projection has cast."""
    q, k, v = (leaf.detach() for leaf in inputs())
    mixed = (q.float(), k.bfloat16().requires_grad_(), v.double().requires_grad_())
    found = attend(*mixed, method=method)
    expected = attend(q.float(), mixed[1].float(), mixed[2].float(), method="reference")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.sum(), mixed[1:])
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float64]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dropout": 0.1}, "does not serve dropout on the weights; method='chunked' does"),
            ({"bias": torch.zeros(1, 1, 1, 1, requires_grad=True)}, "does not serve a bias that requires a gradient"),
        ],
    )
    def test_fused_says_why(self, options, message):
        with pytest.raises(ValueError, match=f"`method` 'fused' {message}"):
            attend(*inputs(), **options, method="fused")
        attend(*inputs(), **options, method="auto")

    def test_fused_takes_a_bias_where_no_gradient_is_asked_for(self):
        bias = volume(1, 1, QUERIES, KEYS).requires_grad_()
        with torch.no_grad():
            found = attend(*inputs(), bias=bias, method="fused")
        assert_close(found, attend(*inputs(), bias=bias.detach(), method="reference"), 1e-13)

    ZEROS = torch.zeros(2, 3, 4, 5)

    @pytest.mark.parametrize(
        ("replaced", "message"),
        [
            ({"q": ZEROS[0]}, r"`q`, `k` and `v` must be \(B, H, N, d\), got 3, 4 and 4 dimensions"),
            ({"v": ZEROS[None]}, r"`q`, `k` and `v` must be \(B, H, N, d\), got 4, 4 and 5 dimensions"),
            ({"q": ZEROS[..., :2]}, "`q` and `k` must have the same last size, got 2 and 5"),
            ({"v": ZEROS[:, :, :3]}, r"`k` and `v` must agree in \(B, H, M\), got \(2, 3, 4\) and \(2, 3, 3\)"),
            ({"q": ZEROS[:1]}, r"`q` and `k` must agree in \(B, H\), got \(1, 3\) and \(2, 3\)"),
            ({"q": ZEROS[:, :1]}, r"`q` and `k` must agree in \(B, H\), got \(2, 1\) and \(2, 3\)"),
            ({"q": ZEROS[:, :, :0]}, "`q`.*at least one.*0"),
            ({"k": ZEROS[:, :, :0], "v": ZEROS[:, :, :0]}, "`k`.*at least one.*0"),
            ({"q": ZEROS.int(), "k": ZEROS.int(), "v": ZEROS.int()}, "`q`.*int32"),
            ({"key_mask": torch.zeros(2, 4)}, "`key_mask` must be boolean, got torch.float32"),
            ({"key_mask": torch.ones(2, 3).bool()}, r"`key_mask` must be \(B, M\) = \(2, 4\), got \(2, 3\)"),
            ({"bias": ZEROS[0, 0]}, r"`bias` must broadcast to .* = \(2, 3, 4, 4\) in 4-D, got \(4, 5\)"),
            ({"bias": ZEROS}, r"`bias` must broadcast to .* = \(2, 3, 4, 4\) in 4-D, got \(2, 3, 4, 5\)"),
            ({"bias": torch.ones(1, 1, 4, 4).bool()}, "`bias`.*torch.bool"),
            ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
            ({"dropout": -0.1}, r"`dropout` must be in \[0, 1\), got -0.1"),
            ({"method": "chunk"}, "`method` got 'chunk'; did you mean 'chunked'\\? available: auto, fused"),
            ({"memory_budget": "lots"}, '`memory_budget` must be bytes, such as "512MiB" or "2GiB", got \'lots\''),
        ],
    )
    @pytest.mark.parametrize("method", METHODS)
    def test_what_does_not_fit_is_named(self, replaced, message, method):
        arguments = {"q": self.ZEROS, "k": self.ZEROS, "v": self.ZEROS, "method": method} | replaced
        with pytest.raises((ValueError, TypeError), match=message):
            attend(**arguments)
