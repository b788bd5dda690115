"""The custom operators of tiles: registration, derivatives, merging, compilation and export."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import attn3d
from attn3d import Grid, attend
from attn3d.attention import VolumeAttention
from attn3d.attention.operator import attend_tiled
from attn3d.attention.sdpa import attend_on_cores
from attn3d.attention.tiled import Softmax, Tile, forward, merge
from tests.attention.exactness import set_tile_bytes
from tests.configurations import randomise
from tests.marks import some
from tests.mechanisms.parity import assert_close, volume
from tests.references import attention as loops

SHAPE = [5, 6]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Makes tiles so small that these tests have several."""
    set_tile_bytes(monkeypatch, 1200)


def leaves(queries=30, keys=30, dtype=torch.float32, width=4, value_width=3):
    sizes = ((queries, width), (keys, width), (keys, value_width))
    return [volume(2, 2, *size, seed=seed).to(dtype).requires_grad_() for seed, size in enumerate(sizes)]


def tokens():
    return [leaf.detach() for leaf in leaves(12, 10, torch.float64)]


BIAS = volume(1, 2, 1, 10).float()
MASK = torch.arange(20).view(2, 10) % 3 > 0
SEED = torch.tensor(11)

TILED = {
    "plain": (None, None, None, 0.5, 0.0, True, None),
    "all": (BIAS.clone().requires_grad_(), MASK, SEED, 0.5, 0.3, True, None),
    "fixed_bias": (BIAS, None, None, 1.0, 0.0, True, None),
}

RUNS = {
    "tiles": lambda q, k, v: attend(q, k, v, backend="chunked"),
    "groups": lambda q, k, v: VolumeAttention(2, 2, pattern=Grid(2))(q, k, v, SHAPE),
    "kernel": lambda q, k, v: attend_on_cores(q, k, v, 0.5),
}


class TestRegistration:
    """`torch.library.opcheck`: schema, autograd registration, fake tensors, compilation with dynamic shapes."""

    @pytest.mark.parametrize("dtype", some([torch.float32, torch.float64], lambda dtype: dtype.itemsize > 4), ids=str)
    @pytest.mark.parametrize("arguments", TILED)
    def test_tiles(self, arguments, dtype):
        torch.library.opcheck(attend_tiled, (*leaves(12, 10, dtype), *TILED[arguments]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_tiles_in_half(self, dtype):
        torch.library.opcheck(attend_tiled, (*leaves(12, 10, dtype), *TILED["all"]))

    def test_tiles_of_views(self):
        q, k, v = (leaf.detach().transpose(2, 3).contiguous().transpose(2, 3) for leaf in leaves(12, 10))
        torch.library.opcheck(attend_tiled, (q.requires_grad_(), k, v.requires_grad_(), *TILED["plain"]))

    def test_backward(self):
        """The fake backward has the shapes and strides of the real one."""
        q, k, v = (leaf.detach() for leaf in leaves(value_width=4))
        out, logsumexp = attend_tiled(q, k, v, None, None, None, 0.5, 0.0, True, None)
        bias = BIAS.expand(1, 2, 3, 10).repeat(1, 1, 10, 3)
        arguments = (volume(2, 2, 30, 4).float(), q, k, v, out, logsumexp, bias, None, SEED, True, 0.5, 0.3, True)
        operator = torch.ops.attn3d.attend_tiled_backward.default
        torch.library.opcheck(operator, (*arguments, None), test_utils=("test_schema", "test_faketensor"))

    def test_operations(self):
        """Forward has a product for each width, backward three for that of queries and two for that of values."""
        q, k, v = leaves(12, 10)
        with FlopCounterMode(display=False) as forward_pass:
            out = attend(q, k, v, backend="chunked")
        with FlopCounterMode(display=False) as backward_pass:
            out.sum().backward()
        pairs, width, value_width = 2 * 2 * 12 * 10, 4, 3
        assert forward_pass.get_total_flops() == 2 * pairs * (width + value_width)
        assert backward_pass.get_total_flops() == 2 * pairs * (3 * width + 2 * value_width)


class TestDerivatives:
    @pytest.mark.parametrize("arguments", TILED)
    def test_of_tiles(self, arguments):
        bias, *constants = TILED[arguments]
        bias = None if bias is None else bias.detach().double().requires_grad_()
        inputs = leaves(6, 10, torch.float64, 2, 2)
        assert torch.autograd.gradcheck(lambda *x: attend_tiled(*x, *constants)[0], (*inputs, bias), fast_mode=True)

    @pytest.mark.parametrize("run", ["groups", "kernel"])
    def test_several_gradients_at_once_are_refused(self, run):
        q, k, v = leaves(value_width=4)
        with pytest.raises(RuntimeError, match="no batched gradients; backend='math' has them"):
            torch.autograd.functional.jacobian(lambda q: RUNS[run](q, k, v), q, vectorize=True)

    @pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
    def test_a_second_derivative_is_refused(self, run):
        """The error names the backend that has one. It is also raised if only a part of the derivative is missing."""
        q, k, v = leaves(value_width=4)

        def differentiate_twice():
            (gradient,) = torch.autograd.grad(run(q, k, v).square().sum(), q, create_graph=True)
            (gradient.square().sum() + q.sum()).backward()

        with pytest.raises(RuntimeError, match="no second derivative; backend='math' has one"):
            differentiate_twice()

    def test_only_requested_gradients_are_computed(self):
        """A bias, q, k or v that does not require a gradient gets none."""
        for needed in itertools.product((False, True), repeat=4):
            if not any(needed):
                continue
            inputs = [*leaves(12, 10), BIAS.clone()]
            inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=True)]
            attend_tiled(*inputs, MASK, None, 0.5, 0.0, True, None)[0].sum().backward()
            assert tuple(tensor.grad is not None for tensor in inputs) == needed

    def test_the_logsumexp_has_none(self):
        """Otherwise a gradient of zeros would be allocated for it."""
        out, logsumexp = attend_tiled(*leaves(12, 10), None, None, None, 0.5, 0.0, True, None)
        assert out.requires_grad
        assert not logsumexp.requires_grad


class TestMerge:
    """A softmax over all keys, merged from parts by their log-sum-exp."""

    def merged(self, q, k, v, cuts, masks):
        parts = [
            forward(q, k[:, :, a:b], v[:, :, a:b], Softmax(0.5, key_mask=mask), Tile(4, 3))
            for (a, b), mask in zip(itertools.pairwise(cuts), masks, strict=True)
        ]
        parts = [(out, logsumexp.unsqueeze(3)) for out, logsumexp in parts]
        return functools.reduce(merge, parts[1:], parts[0])[0]

    @pytest.mark.parametrize("cuts", [(0, 10), (0, 4, 10), (0, 1, 2, 9, 10)], ids=str)
    @pytest.mark.parametrize("largest", [1.0, 50.0])
    def test_equals_the_whole(self, cuts, largest):
        """Also with keys that differ by orders of magnitude between the parts."""
        q, k, v = tokens()
        k = k * torch.linspace(1.0, largest, 10).view(1, 1, 10, 1)
        found = self.merged(q, k, v, cuts, [None] * (len(cuts) - 1))
        expected, _ = loops.attend(q, k, v, scale=0.5)
        assert_close(found, expected, 1e-12)

    def test_a_part_without_a_key_has_no_weight(self):
        q, k, v = tokens()
        mask = torch.ones(2, 10, dtype=torch.bool)
        mask[0, :4] = False
        found = self.merged(q, k, v, (0, 4, 10), (mask[:, :4], mask[:, 4:]))
        expected, _ = loops.attend(q, k, v, scale=0.5, key_mask=mask)
        assert_close(found, expected, 1e-13)

    @pytest.mark.parametrize("parts", [1, 3])
    def test_a_query_without_a_key_in_any_part_gets_zero(self, parts):
        q, k, v = tokens()
        mask = torch.ones(2, 10, dtype=torch.bool)
        mask[0] = False
        cuts = (0, 10) if parts == 1 else (0, 4, 9, 10)
        found = self.merged(q, k, v, cuts, [mask[:, a:b] for a, b in itertools.pairwise(cuts)])
        expected, _ = loops.attend(q, k, v, scale=0.5, key_mask=mask)
        assert (found[0] == 0).all()
        assert_close(found, expected, 1e-13)


PATTERNS = [
    "global",
    ("window", {"size": 3, "shift": True}),
    ("grid", {"size": 2}),
    "axial",
    ("neighborhood", {"size": 3}),
    ("pooled_keys", {"stride": 2}),
]
DEFAULT = ["global"]  # test_captured.py has other patterns


def self_attention(pattern, **options):
    bias = "axis" if pattern[0] in ("window", "grid", "neighborhood") else None
    return randomise(attn3d.MultiHeadSelfAttention(2, 4, num_heads=2, pattern=pattern, position_bias=bias, **options))


@pytest.mark.scorecard("captures")
class TestCompilers:
    """No graph breaks, in forward and backward."""

    def compare(self, compiled, eager, x):
        parameters = list(eager.parameters())
        results = []
        for run in (compiled, eager):
            leaf = x.clone().requires_grad_()
            out = run(leaf)
            results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *parameters])])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("pattern", some(PATTERNS, lambda pattern: pattern not in DEFAULT), ids=str)
    def test_compiles_with_dynamic_shapes(self, pattern):
        torch.compiler.reset()
        module = self_attention(pattern).double()
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((2, 4, 7, 6), (3, 4, 9, 5)):
            self.compare(compiled, module, volume(*shape))

    @pytest.mark.parametrize("backend", ["sdpa", "chunked"])
    @pytest.mark.parametrize(
        "options", [{}, {"key_mask": MASK[:, :9]}, {"dropout": 0.5}], ids=["plain", "mask", "drop"]
    )
    def test_attend_compiles(self, options, backend):
        if backend == "sdpa" and "dropout" in options:
            backend = "auto"
        torch.compiler.reset()

        def run(q, k, v):
            return attend(q, k, v, backend=backend, **options)

        compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
        inputs, results = leaves(11, 9), []
        for function in (compiled, run):
            torch.manual_seed(1)
            out = function(*inputs)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("pattern", some(PATTERNS, lambda pattern: PATTERNS.index(pattern) != 1), ids=str)
    def test_compiles_under_autocast(self, pattern):
        """In bfloat16, as in training on GPUs: forward and backward equal those of eager mode up to rounding."""
        torch.compiler.reset()
        module = self_attention(pattern).float()
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
        x, gradients = volume(2, 4, 7, 6).float(), []
        for run in (compiled, module):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                out = run(leaf)
            gradients.append([out.float(), *torch.autograd.grad(out.float().sum(), [leaf, *module.parameters()])])
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())

    @pytest.mark.parametrize("pattern", some(PATTERNS, lambda pattern: pattern not in DEFAULT), ids=str)
    def test_exports_with_dynamic_batch_and_space(self, pattern):
        module = self_attention(pattern, backend="chunked").eval()
        dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        program = torch.export.export(module, (volume(2, 4, 7, 6).float(),), dynamic_shapes=(dynamic,))
        for shape in ((3, 4, 9, 5), (1, 4, 8, 8)):
            x = volume(*shape).float()
            torch.testing.assert_close(program.module()(x), module(x))

    @pytest.mark.parametrize("pattern", some(PATTERNS, lambda pattern: pattern != "global"), ids=str)
    def test_compiles_with_a_budget(self, pattern):
        torch.compiler.reset()
        layer = VolumeAttention(2, 2, pattern=pattern, memory_budget="1MiB")
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        inputs = leaves()
        torch.testing.assert_close(compiled(*inputs, SHAPE), layer(*inputs, SHAPE))
