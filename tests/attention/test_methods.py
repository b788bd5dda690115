"""`attend`: every method against loops in float64, and what each refuses."""

from __future__ import annotations

import pytest
import torch
from attn3d.attention.methods import refusal_of_fused
from attn3d.attention.operators import attend_tiled
from torch._subclasses.fake_tensor import FakeTensorMode

from attn3d import attend
from attn3d.attention import choose_method
from tests.attention.exactness import (
    BATCH,
    DTYPES,
    HEADS,
    KEYS,
    LAYOUTS,
    MASKS,
    METHODS,
    QUERIES,
    SCALE,
    assert_as_exact_as_the_plain_form,
    assert_as_reference,
    case,
    inputs,
)
from tests.mechanisms.parity import assert_close, volume
from tests.references import attention as loops


@pytest.mark.scorecard("methods")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_the_plain_form(dtype, mask, method, count_cases):
    """Output and gradients, with a key mask, a batch item without a key, a bias, and a bias that hides."""

    def run(q, k, v, key_mask, bias):
        return attend(q, k, v, key_mask=key_mask, bias=bias, method=method)

    if method == "fused" and dtype == torch.float16 and mask.startswith("key"):
        with pytest.raises(ValueError, match="`method` 'fused' does not serve a key mask in half precision"):
            attend(*case(dtype, mask).inputs, key_mask=case(dtype, mask).key_mask, method=method)
        return
    assert_as_exact_as_the_plain_form(run, dtype, mask, trains_the_bias=method != "fused")
    count_cases(2)  # forward and backward


@pytest.mark.scorecard("methods")
@pytest.mark.parametrize("pairs", [1, 49, (QUERIES - 1) ** 2, QUERIES**2, (QUERIES + 5) ** 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator_is_as_exact_in_any_room(dtype, mask, pairs, count_cases):
    """Tiles of as many pairs as there is room for; a room of one byte has one pair."""
    room = 4 * BATCH * HEADS * pairs if pairs > 1 else 1

    def run(q, k, v, key_mask, bias):
        return attend_tiled(q, k, v, bias, key_mask, None, SCALE, 0.0, room)[0]

    assert_as_exact_as_the_plain_form(run, dtype, mask)
    count_cases(2)  # forward and backward


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


@pytest.mark.scorecard("errors")
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

    @pytest.mark.scorecard  # no error
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


class TestOnCuda:
    """What its kernels cannot serve, by tensors that have a device and no memory."""

    @staticmethod
    def refusal(*, batch=1, heads=1, queries=4, keys=4, width=8, value_width=8, masked=False, biased=False):
        with FakeTensorMode():
            sizes = ((queries, width), (keys, width), (keys, value_width))
            q, k, v = (torch.empty(batch, heads, *size, device="cuda") for size in sizes)
            key_mask = torch.empty(batch, keys, dtype=torch.bool, device="cuda") if masked else None
            bias = torch.empty(1, 1, 1, 1, device="cuda") if biased else None
            return refusal_of_fused(q, k, v, key_mask, bias, 0.0)

    @pytest.mark.parametrize(
        ("most", "more", "reason"),
        [
            ({"batch": 65_535}, {"batch": 65_536}, "a batch or heads of more than 65535"),
            ({"heads": 65_535}, {"heads": 65_536}, "a batch or heads of more than 65535"),
            ({"width": 256}, {"width": 257}, "head dimensions above 256"),
            ({"value_width": 256}, {"value_width": 257}, "head dimensions above 256"),
            ({"width": 255, "masked": True}, {"width": 256, "masked": True}, "head dimensions above 256"),
            (
                {"queries": 2**16, "keys": 2**15, "biased": True},
                {"queries": 2**16, "keys": 2**15 + 1, "biased": True},
                "a bias over more than 2^31 pairs",
            ),
            ({"queries": 2**20, "keys": 2**20}, {"width": 512}, "head dimensions above 256"),
        ],
    )
    def test_the_most_and_one_more(self, most, more, reason):
        assert self.refusal(**most) == ""
        assert self.refusal(**more) == reason

    def test_on_the_cpu_there_is_no_such_limit(self):
        q = torch.empty(1, 65_536, 1, 300)
        assert refusal_of_fused(q, q, q, None, None, 0.0) == ""


class TestChoice:
    """The method "auto" says what it takes, and why."""

    def test_the_kernel_where_it_serves(self):
        found = choose_method(*inputs())
        assert found == ("fused", "PyTorch's kernel serves these arguments, and is the fastest")

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"dropout": 0.1}, "dropout on the weights"),
            ({"bias": torch.zeros(1, 1, 1, 1, requires_grad=True)}, "a bias that requires a gradient"),
            ({"bias": torch.zeros(1, 1, 1, 1).double()}, "a bias of higher precision than the queries"),
        ],
    )
    def test_tiles_where_it_does_not(self, options, reason):
        leaves = [leaf.detach().float() for leaf in inputs()]
        assert choose_method(*leaves, **options) == ("chunked", f"the fused kernel does not serve {reason}")

    def test_tiles_where_it_takes_too_much(self):
        q, k, v = (volume(1, 1, 1000, 8, seed=seed).float() for seed in range(3))
        found = choose_method(q, k, v, memory_budget="128KiB")
        assert found == ("chunked", "the fused kernel would take more than 128KiB")

    def test_a_bias_of_the_precision_of_the_queries_or_less_is_served(self):
        q, k, v = (leaf.detach() for leaf in inputs())
        for dtype in (torch.float64, torch.float32, torch.float16):
            assert choose_method(q, k, v, bias=torch.zeros(1, 1, 1, 1, dtype=dtype)).method == "fused"
