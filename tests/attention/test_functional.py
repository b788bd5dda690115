"""`attend`: every backend against loops in float64, and the errors of each."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attn3d import attend
from attn3d.attention import functional, sdpa
from tests.attention.exactness import (
    BACKENDS,
    BATCH,
    DTYPES,
    HEADS,
    KEYS,
    LAYOUTS,
    MASKS,
    QUERIES,
    assert_as_exact_as_the_plain_form,
    assert_as_reference,
    case,
    inputs,
)
from tests.mechanisms.parity import assert_close, volume
from tests.references import attention as loops


@pytest.mark.scorecard("backends")
@pytest.mark.parametrize(
    ("mask", "backend"), [case for case in itertools.product(MASKS, BACKENDS) if case != ("keys_and_bias", "sdpa")]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_the_plain_form(dtype, mask, backend, count_cases):
    """Output and gradients, with a key mask, a batch item without a key, a bias, and a bias that hides keys."""

    def run(q, k, v, key_mask, bias):
        return attend(q, k, v, key_mask=key_mask, bias=bias, backend=backend)

    assert_as_exact_as_the_plain_form(run, dtype, mask, trains_the_bias=backend != "sdpa")
    count_cases(2)  # forward and backward


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("widths", [(1, 1), (4, 4), (3, 8), (8, 3), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("counts", [(1, 1), (1, 9), (9, 1), (16, 16)], ids=str)
def test_any_widths_and_counts(counts, widths, backend):
    leaves = inputs(*counts, *widths)
    expected, _ = loops.attend(*leaves)
    assert_as_reference(leaves, attend(*leaves, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 2.5])
def test_the_scale_multiplies_the_products(scale, backend):
    """The scale changes neither the bias nor the mask."""
    leaves = inputs()
    bias = volume(1, HEADS, 1, KEYS) + (0 if backend == "sdpa" else volume(BATCH, 1, QUERIES, 1))
    key_mask = torch.arange(BATCH * KEYS).view(BATCH, KEYS) % 4 > 0
    expected, _ = loops.attend(*leaves, scale=scale, bias=bias, key_mask=key_mask)
    found = attend(*leaves, scale=scale, bias=bias, key_mask=key_mask, backend=backend)
    assert_as_reference(leaves, found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [1, 4])
def test_any_layout_in_memory(width, layout, backend):
    """The strides of a view of a volume, of stacked projections and of shared keys."""
    leaves = inputs(9, 9, width, width)
    views = [LAYOUTS[layout](leaf) for leaf in leaves]
    expected, _ = loops.attend(*(view.contiguous() for view in views))
    found = attend(*views, backend=backend)
    assert_as_reference(leaves, found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_channel_of_one_in_channels_first(backend):
    """PyTorch calls it contiguous whatever its last stride is, but its kernels depend on that stride."""
    leaf = volume(2, 1, 30).requires_grad_()
    tokens = leaf.transpose(1, 2).unsqueeze(1)
    assert tokens.stride(-1) != 1
    expected, _ = loops.attend(tokens, tokens, tokens)
    assert_as_reference([leaf], attend(tokens, tokens, tokens, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_zero_and_one(batch, backend):
    leaves = inputs(batch=batch)
    found = attend(*leaves, backend=backend)
    assert found.shape == (batch, HEADS, QUERIES, 6)
    gradients = torch.autograd.grad(found.sum(), leaves)
    assert [grad.shape for grad in gradients] == [leaf.shape for leaf in leaves]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_changed(backend):
    leaves = [leaf.detach() for leaf in inputs()]
    bias, key_mask = volume(1, 1, 1, KEYS), torch.arange(BATCH * KEYS).view(BATCH, KEYS) % 2 > 0
    before = [tensor.clone() for tensor in (*leaves, bias, key_mask)]
    attend(*leaves, bias=bias, key_mask=key_mask, backend=backend)
    for tensor, copy in zip((*leaves, bias, key_mask), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_stay_finite(dtype, backend):
    """Scale 1 and products of 1e5, past the largest number in half precision."""
    q = torch.full((1, 1, 6, 64), 40.0)
    q[:, :, ::2] *= -1
    q[:, :, 2:] += volume(1, 1, 4, 64).float() * 0.1
    q, v = q.to(dtype).requires_grad_(), volume(1, 1, 6, 8).to(dtype)
    assert (q.double() @ q.double().transpose(2, 3)).max() > 1e5
    found = attend(q, q, v, scale=1.0, backend=backend)
    expected, _ = loops.attend(q.double(), q.double(), v.double(), scale=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * 1.5)
    (gradient,) = torch.autograd.grad(found.sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", ["none", "keyless", "bias"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_change_the_result(autocast, mask, backend):
    """The precision is that of the inputs, so that all backends agree."""
    q, k, v = (leaf.detach().float() for leaf in inputs())
    _, key_mask, bias, *_ = case(torch.float32, mask)
    expected = attend(q, k, v, key_mask=key_mask, bias=bias, backend=backend)
    with torch.autocast("cpu", autocast):
        found = attend(q, k, v, key_mask=key_mask, bias=bias, backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_and_values_are_taken_in_the_dtype_of_the_queries(backend):
    """Under autocast, queries and keys without a projection are float32, and projected values are not."""
    q, k, v = (leaf.detach() for leaf in inputs())
    mixed = (q.float(), k.bfloat16().requires_grad_(), v.double().requires_grad_())
    found = attend(*mixed, backend=backend)
    expected = attend(q.float(), mixed[1].float(), mixed[2].float(), backend="math")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.sum(), mixed[1:])
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float64]


@pytest.mark.scorecard("errors")
class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dropout": 0.1}, "does not support dropout on the weights; backend='chunked' does"),
            ({"bias": torch.zeros(1, 1, 1, 1, requires_grad=True)}, "does not support a bias that requires a gradient"),
            (
                {"bias": torch.zeros(1, 1, QUERIES, 1), "key_mask": torch.ones(BATCH, KEYS, dtype=torch.bool)},
                "does not support a key mask with a bias per query that samples or keys share; backend='chunked' does",
            ),
        ],
    )
    def test_sdpa_gives_the_reason(self, options, message):
        with pytest.raises(ValueError, match=f"`backend` 'sdpa' {message}"):
            attend(*inputs(), **options, backend="sdpa")
        attend(*inputs(), **options, backend="auto")

    @pytest.mark.scorecard  # no error
    def test_sdpa_takes_a_bias_without_a_gradient(self):
        bias = volume(1, 1, QUERIES, KEYS).requires_grad_()
        with torch.no_grad():
            found = attend(*inputs(), bias=bias, backend="sdpa")
        assert_close(found, attend(*inputs(), bias=bias.detach(), backend="math"), 1e-13)

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
            ({"k": ZEROS.long()}, "`k` must have a floating point dtype, got torch.int64"),
            ({"v": ZEROS.bool()}, "`v` must have a floating point dtype, got torch.bool"),
            ({"scale": "1"}, "`scale` must be a number or None, got '1'"),
            ({"scale": torch.ones(())}, r"`scale` must be a number or None, got tensor\(1\.\)"),
            ({"key_mask": torch.zeros(2, 4)}, "`key_mask` must be boolean, got torch.float32"),
            ({"key_mask": torch.ones(2, 3).bool()}, r"`key_mask` must be \(B, M\) = \(2, 4\), got \(2, 3\)"),
            ({"bias": ZEROS[0, 0]}, r"`bias` must broadcast to .* = \(2, 3, 4, 4\) in 4-D, got \(4, 5\)"),
            ({"bias": ZEROS}, r"`bias` must broadcast to .* = \(2, 3, 4, 4\) in 4-D, got \(2, 3, 4, 5\)"),
            ({"bias": torch.ones(1, 1, 4, 4).bool()}, "`bias`.*torch.bool"),
            ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\), got 1.0"),
            ({"dropout": -0.1}, r"`dropout` must be a number in \[0, 1\), got -0.1"),
            ({"backend": "chunk"}, "`backend` got 'chunk'; did you mean 'chunked'\\? available: auto, sdpa"),
            ({"memory_budget": "lots"}, '`memory_budget` must be bytes, such as "512MiB" or "2GiB", got \'lots\''),
        ],
    )
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_invalid_arguments_are_named(self, replaced, message, backend):
        arguments = {"q": self.ZEROS, "k": self.ZEROS, "v": self.ZEROS, "backend": backend} | replaced
        with pytest.raises((ValueError, TypeError), match=message):
            attend(**arguments)


def test_arguments_that_are_not_tensors():
    q = torch.zeros(1, 1, 2, 3)
    for given, name in (([q.numpy(), q, q], "q"), ([q, q.numpy(), q], "k"), ([q, q, None], "v")):
        with pytest.raises(TypeError, match=f"`{name}` must be a torch.Tensor, got"):
            attend(*given)
    for name in ("key_mask", "bias"):
        with pytest.raises(TypeError, match=f"`{name}` must be a torch.Tensor, got list"):
            attend(q, q, q, **{name: [[True, False]]})


class TestOnCuda:
    """The limits of CUDA's kernels, checked with fake tensors."""

    @staticmethod
    def refusal(
        *, batch=1, heads=1, queries=4, keys=4, width=8, value_width=8, masked=False, biased=False, dtype=torch.float32
    ):
        with FakeTensorMode():
            sizes = ((queries, width), (keys, width), (keys, value_width))
            q, k, v = (torch.empty(batch, heads, *size, dtype=dtype, device="cuda") for size in sizes)
            key_mask = torch.empty(batch, keys, dtype=torch.bool, device="cuda") if masked else None
            bias = torch.empty(1, 1, 1, 1, device="cuda") if biased else None
            return sdpa.refusal(q, k, v, key_mask, bias, 0.0)

    @pytest.mark.parametrize(
        ("most", "more", "reason"),
        [
            ({"batch": 65_535}, {"batch": 65_536}, "a batch or heads of more than 65535"),
            ({"heads": 65_535}, {"heads": 65_536}, "a batch or heads of more than 65535"),
            ({"width": 256}, {"width": 257}, "head dimensions above 256"),
            ({"value_width": 256}, {"value_width": 257}, "head dimensions above 256"),
            (
                {"queries": 2**16, "keys": 2**15, "masked": True},
                {"queries": 2**16, "keys": 2**15 + 1, "masked": True},
                "a bias or a mask over more than 2^31 pairs",
            ),
            (
                {"queries": 2**16, "keys": 2**15, "biased": True},
                {"queries": 2**16, "keys": 2**15 + 1, "biased": True},
                "a bias or a mask over more than 2^31 pairs",
            ),
            ({"queries": 2**20, "keys": 2**20}, {"width": 512}, "head dimensions above 256"),
            ({"dtype": torch.float16}, {"dtype": torch.float64}, "double precision on this device"),
        ],
    )
    def test_the_limit_and_one_more(self, most, more, reason):
        assert self.refusal(**most) == ""
        assert self.refusal(**more) == reason

    def test_the_cpu_has_no_such_limit(self):
        q = torch.empty(1, 65_536, 1, 300)
        assert sdpa.refusal(q, q, q, None, None, 0.0) == ""


class TestChoice:
    """The backend "auto" uses the kernel where it supports the arguments and fits the budget, else tiles."""

    @pytest.fixture
    def taken(self, monkeypatch):
        """The backends that ran, in order."""
        names = []
        for module, function, name in ((sdpa, "attend_fused", "sdpa"), (functional, "attend_tiled", "chunked")):
            run = getattr(module, function)
            monkeypatch.setattr(
                module,
                function,
                lambda *args, run=run, name=name, **options: names.append(name) or run(*args, **options),
            )
        return names

    def test_the_kernel_where_it_supports_the_arguments(self, taken):
        attend(*inputs())
        for dtype in (torch.float64, torch.float32, torch.float16):  # a bias as precise as the queries, or less
            attend(*inputs(), bias=torch.zeros(1, 1, 1, 1, dtype=dtype))
        assert taken == ["sdpa"] * 4

    @pytest.mark.parametrize(
        "options",
        [
            {"dropout": 0.1},
            {"bias": torch.zeros(1, 1, 1, 1, requires_grad=True)},
            {"bias": torch.zeros(1, 1, 1, 1).double()},
        ],
        ids=["dropout", "learnt", "double"],
    )
    def test_tiles_where_the_kernel_does_not(self, options, taken):
        attend(*(leaf.detach().float() for leaf in inputs()), **options)
        assert taken == ["chunked"]

    def test_tiles_where_the_kernel_exceeds_the_budget(self, taken):
        q, k, v = (volume(1, 1, 1000, 8, seed=seed).float() for seed in range(3))
        attend(q, k, v, memory_budget="4MiB")
        attend(q, k, v, memory_budget="128KiB")
        assert taken == ["sdpa", "chunked"]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_given_backend(self, backend, taken):
        attend(*inputs(), backend=backend)
        assert taken == {"sdpa": ["sdpa"], "chunked": ["chunked"], "math": [], "auto": ["sdpa"]}[backend]

    def test_too_small_a_budget_for_the_given_kernel(self, taken):
        """The budget in the error message works."""
        q, k, v = (volume(1, 1, 1000, 8, seed=seed).float() for seed in range(3))
        with pytest.raises(ValueError, match=r"at least \d+ bytes with 'sdpa', got 1024") as error:
            attend(q, k, v, backend="sdpa", memory_budget="1KiB")
        least = int(re.search(r"(\d+) bytes", str(error.value))[1])
        attend(q, k, v, backend="sdpa", memory_budget=least)
        with pytest.raises(ValueError, match=f"`memory_budget` must be at least {least} bytes"):
            attend(q, k, v, backend="sdpa", memory_budget=least - 1)
        assert taken == ["sdpa"]

    @pytest.mark.parametrize(("backend", "chosen"), [("sdpa", "sdpa"), ("auto", "chunked")])
    def test_a_budget_in_a_graph(self, backend, chosen, taken):
        """Sizes may be symbolic in a graph, so that the number of bytes is unknown."""

        class Layer(torch.nn.Module):
            def forward(self, q, k, v):
                return attend(q, k, v, backend=backend, memory_budget="1GiB")

        leaves = tuple(leaf.detach().float() for leaf in inputs())
        program = torch.export.export(Layer(), leaves, strict=False)
        assert taken == [chosen]
        torch.testing.assert_close(program.module()(*leaves), attend(*leaves, backend="math"))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_a_gradient_of_torch_func_through_tiles_is_refused(transform):
    """PyTorch supports no custom operator there. `vmap` and then `backward` work."""
    q = torch.randn(3, 1, 2, 5, 4, requires_grad=True)

    def total(q, backend="chunked"):
        return attend(q, q, q, backend=backend).square().sum()

    with pytest.raises(RuntimeError, match=r"`backend` 'chunked' has no gradient in torch\.func; backend='math' and"):
        transform(total)(q[0])
    expected = torch.stack([torch.func.grad(total)(one, "math") for one in q])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda q: total(q, "sdpa")))(q), expected)
    (found,) = torch.autograd.grad(torch.func.vmap(total)(q).sum(), q)
    torch.testing.assert_close(found, expected)
