"""PyTorch's CPU kernel, with a backward pass in parts of the queries and runs of the keys."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import attn3d
from attn3d import attend
from attn3d.attention import VolumeAttention, layer, sdpa
from attn3d.attention.sdpa import attend_on_cores, fused_bytes, kernel_bytes, parallel_parts
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.memory import peak
from tests.references import attention as loops

pytestmark = pytest.mark.usefixtures("on_the_cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(queries, keys, batch=2, heads=1, width=4, dtype=torch.float64):
    leaves = [volume(batch, heads, count, width, seed=seed) for seed, count in enumerate((queries, keys, keys))]
    return [leaf.to(dtype).requires_grad_() for leaf in leaves]


@pytest.fixture
def cut(monkeypatch):
    """A function that sets the number of parts, and the number of keys in a run."""

    def set_to(parts, keys):
        monkeypatch.setattr(sdpa, "parallel_parts", lambda sequences: parts)
        monkeypatch.setattr(sdpa, "keys_at_a_time", lambda *_: keys)

    return set_to


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("keys", [1, 5, 99])
@pytest.mark.parametrize("queries", [1, 16, 17])
@pytest.mark.parametrize("heads", [1, 2])
def test_every_cut_equals_the_reference(heads, queries, keys, parts, cut):
    """Also unequal parts, and fewer queries than parts."""
    cut(parts, keys)
    leaves = inputs(queries, 12, heads=heads)
    found = attend_on_cores(*leaves, 0.7)
    expected, _ = loops.attend(*leaves, scale=0.7)
    assert_close(found, expected, 1e-13)
    assert_gradients_close(found, leaves, expected, leaves, "qkv")


@pytest.mark.scorecard("backends")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_the_plain_form(dtype, cut):
    """At most three times its error, as root mean squares; with many runs of keys, as at large sizes."""
    cut(3, 16)
    leaves = inputs(90, 128, dtype=dtype)
    upstream = volume(2, 1, 90, 4).to(dtype)

    def gradients(leaves, upstream, attention):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        return torch.autograd.grad(attention(*leaves), leaves, upstream)

    def plain(q, k, v):
        return (q @ k.transpose(2, 3) * 0.5).softmax(3) @ v

    expected = gradients([leaf.double() for leaf in leaves], upstream.double(), plain)
    for name, found, same, reference in zip(
        "qkv",
        gradients(leaves, upstream, lambda q, k, v: attend_on_cores(q, k, v, 0.5)),
        gradients(leaves, upstream, plain),
        expected,
        strict=True,
    ):
        error, allowed = ((x.double() - reference).square().mean().sqrt() for x in (found, same))
        assert error <= 3 * allowed + 0.05 * torch.finfo(dtype).eps * reference.square().mean().sqrt(), name


@pytest.mark.parametrize(
    ("queries", "dtype", "masked"),
    [(600, torch.bfloat16, False), (600, torch.float32, True), (1, torch.bfloat16, True), (1, torch.float32, True)],
    ids=str,
)
def test_a_bias_that_is_built_is_within_the_budget(queries, dtype, masked):
    """A bias that is cast, or added to a key mask. Where it would have an entry for each pair, tiles are used."""
    q, k, v = (leaf.detach() for leaf in inputs(600, 2000, dtype=torch.float32))
    bias = torch.zeros(2, 1, queries, 2000, dtype=dtype)
    key_mask = torch.ones(2, 2000, dtype=torch.bool) if masked else None

    def run():
        return attend(q, k, v, key_mask=key_mask, bias=bias, memory_budget="2MiB")

    run()  # the first call makes lasting allocations
    assert peak(run) <= 2 * 2**20
    if queries == 1:
        built = fused_bytes(q, k, v, False, key_mask, bias) - fused_bytes(q, k, v, False)
        assert built >= peak(lambda: bias.to(q.dtype).masked_fill(~key_mask[:, None, None], 0.0)) - bias.nbytes


class TestChoice:
    """`attend` cuts the backward pass where the kernel's own backward would leave cores idle."""

    @pytest.fixture
    def calls(self, monkeypatch):
        """The inputs of each call."""
        called = []
        monkeypatch.setattr(sdpa, "attend_on_cores", lambda *args: called.append(args) or attend_on_cores(*args))
        return called

    @pytest.fixture(autouse=True)
    def threads(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    @pytest.mark.parametrize("backend", ["auto", "sdpa"])
    @pytest.mark.parametrize("widths", [(4, 4), (4, 7), (7, 4)], ids=str)
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_first"])
    def test_equal_to_the_kernel(self, layout, masked, widths, backend, calls):
        """With unequal widths, and on a view of a volume; a key mask is passed to the kernel."""
        leaves = [volume(1, 1, 1030, width, seed=seed) for seed, width in enumerate((widths[0], *widths))]
        if layout == "channels_first":
            leaves = [leaf.transpose(2, 3).contiguous().transpose(2, 3) for leaf in leaves]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        key_mask = torch.arange(1030).view(1, -1) % 3 > 0 if masked else None
        found = attend(*leaves, key_mask=key_mask, backend=backend)
        assert len(calls) == (0 if masked else 1)
        expected = attend(*leaves, key_mask=key_mask, backend="math")
        assert_close(found, expected, 1e-13)
        assert_gradients_close(found, leaves, expected, leaves, "qkv")

    def test_not_where_it_does_not_pay(self, calls):
        attend(*inputs(1024, 1024, 1))
        assert len(calls) == 1
        attend(*inputs(1024, 1023, 1))
        attend(*inputs(1024, 1024, 4))
        attend(*inputs(1024, 1024, 1), bias=torch.zeros(1, 1, 1, 1))
        with torch.no_grad():
            attend(*inputs(1024, 1024, 1))
        assert len(calls) == 1

    def test_copies_and_tiles_are_counted(self):
        """The kernel copies a tensor with a last stride other than 1; its tile of scores grows with the queries."""
        q, k, v = (torch.empty(2, 3, 7, 4) for _ in range(3))
        strided = torch.empty(2, 3, 4, 7).transpose(2, 3)
        assert fused_bytes(strided, k, v, False) - fused_bytes(q, k, v, False) == 4 * q.numel()
        rows = {
            queries: kernel_bytes(queries, 0, 6, torch.float32) // (4 * 8 * torch.get_num_threads())
            for queries in (191, 192, 767, 768)
        }
        assert rows == {191: 32, 192: 64, 767: 64, 768: 256}

    def test_as_many_parts_as_idle_threads(self):
        assert [parallel_parts(sequences) for sequences in (0, 1, 2, 3, 4, 9)] == [4, 4, 2, 1, 1, 1]

    def test_eight_parts_at_most(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
        assert [parallel_parts(sequences) for sequences in (1, 8, 9)] == [8, 8, 7]


@pytest.mark.parametrize("name", ["non_local", "mhsa", "danet"])
def test_attention_that_uses_several_cores_compiles_into_one_graph(name):
    """The number of threads cannot be traced; only large volumes ask for it."""
    torch.compiler.reset()
    x = torch.randn(1, 8, 1024, requires_grad=True)
    net = attn3d.create_attention(name, spatial_dims=1, channels=8)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_other_threads_keep_their_choice_of_kernels(monkeypatch):
    """PyTorch's choice of kernels is global to the process: attention on a CPU does not change it."""
    seen = []

    def watched(*args, **options):
        seen.append(torch.backends.cuda.math_sdp_enabled())
        return attention(*args, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    q = torch.zeros(1, 2, 3, 4)
    attend(q, q, q, backend="sdpa")
    assert seen == [True]


@pytest.mark.parametrize(
    ("options", "tiled"),
    [
        ({"pattern": attn3d.Window(2)}, False),
        ({"pattern": attn3d.Window(2), "position_bias": "axis"}, True),
        ({"pattern": attn3d.Window(2), "position_bias": "axis", "backend": "sdpa"}, False),
        ({"pattern": "axial"}, True),
        ({"pattern": attn3d.Window(2), "memory_budget": "1GiB"}, True),
    ],
    ids=str,
)
def test_what_needs_much_memory_for_all_groups_at_once_is_tiled_on_a_gpu(options, tiled, monkeypatch):
    """A bias of every group, and the scores of all pairs."""
    called = []
    monkeypatch.setattr(layer, "attend_captured", lambda *_: called.append("all groups"))
    monkeypatch.setattr(layer, "attend_groups", lambda *given: called.append("tiles"))
    monkeypatch.setattr(VolumeAttention, "_bias", lambda *_: None)
    q = torch.empty(1, 2, 16, 4, device="meta")  # treated like a GPU
    with torch.no_grad():
        VolumeAttention(2, 2, **options).to("meta").eval()(q, q, q, [4, 4])
    assert called == ["tiles" if tiled else "all groups"]


def test_widths_on_a_gpu_are_multiples_of_eight():
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 2, 3, width, device="cuda") for width in (5, 5, 9))
        assert [x.shape[3] for x in sdpa.equal_widths(q, k, v)] == [16, 16, 16]
        assert [x.shape[3] for x in sdpa.equal_widths(q.cpu(), k.cpu(), v.cpu())] == [9, 9, 9]
