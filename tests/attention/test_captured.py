"""The plain operators that captures are made of: each pattern scripted, traced and exported to ONNX."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from attn3d.attention.plain import plain_attention, plain_cells, pool_tokens, pooled_shape

import attn3d
from tests.attention.layers import results, tokens
from tests.configurations import randomise
from tests.marks import some
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import assert_close, volume
from tests.references.attention import attend, pool

PATTERNS = [
    ("window", {"size": (2, 3, 4), "shift": True}),
    "global",
    ("window", {"size": 2}),
    ("grid", {"size": 2}),
    "axial",
    ("neighborhood", {"size": 3, "dilation": (1, 2, 1)}),
    ("pooled_keys", {"stride": 2}),
]
SHAPE = (2, 4, 3, 5, 6)


def module(pattern):
    """Self-attention in evaluation, with random position tables where the pattern has any."""
    bias = "axis" if pattern[0] in ("window", "grid", "neighborhood") else None
    layer = attn3d.MultiHeadSelfAttention(3, 4, num_heads=2, pattern=pattern, position_bias=bias)
    return randomise(layer).eval()


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("capture", ["script", "trace"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_captured_by_torchscript(pattern, capture):
    """Output and gradient of the input."""
    net, x = module(pattern).double(), volume(*SHAPE).requires_grad_()
    captured = torch.jit.script(net) if capture == "script" else torch.jit.trace(net, (x.detach(),))
    found, expected = captured(x), net(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("pattern", some(PATTERNS, lambda pattern: pattern != PATTERNS[0]), ids=str)
def test_exports_to_onnx(pattern):
    """onnxruntime gives what the module gives, on other values."""
    net, x = module(pattern), volume(*SHAPE).float()
    program = torch.onnx.export(net, (x,), dynamo=True, verbose=False, input_names=["x"])
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    other = volume(*SHAPE, seed=7).float()
    (found,) = session.run(None, {"x": other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("largest_grid", [1, 5, 8, 65_535])
@pytest.mark.parametrize("bias", [False, True])
def test_more_cells_than_a_grid_takes_are_split(bias, largest_grid):
    """As those beyond 65,535 on CUDA: the same outputs and gradients, in so many calls."""
    leaves, shape = tokens((5, 7)), [5, 7]
    pair = volume(1, 2, 9, 9) if bias else None

    def run(grid):
        out = plain_cells(
            *leaves, [], pair, shape, ["window"] * 2, [3, 3], [1, 1], not bias, 0.5, 0.0, largest_grid=grid
        )
        return results(out, leaves, None)

    for name, value in run(largest_grid).items():
        assert_close(value, run(10**9)[name], 1e-13)


def test_split_calls_are_as_many_as_fit(monkeypatch):
    """Batch entries times cells times heads is what a call may have."""
    calls = []

    def counted(q, *args):
        calls.append(q.shape[0] * q.shape[1])
        return plain_attention(q, *args)

    monkeypatch.setattr("attn3d.attention.plain.plain_attention", counted)
    q, k, v = tokens((5, 7))  # two batch entries, 2 x 3 windows, two heads
    plain_cells(q, k, v, [], None, [5, 7], ["window"] * 2, [3, 3], [1, 1], False, 0.5, 0.0, largest_grid=5)
    assert calls == [4] * 6


@pytest.mark.parametrize("value_width", [3, 8, 13])
def test_views_and_unequal_widths_stay_in_the_kernel(value_width):
    """A textbook view of a volume, which PyTorch's function alone would serve by N x M."""
    count = 300
    q, k = (volume(1, 1, 8, count, seed=seed).transpose(2, 3) for seed in (0, 1))
    v = volume(1, 1, count, value_width)
    found = []
    largest = largest_output(lambda: found.append(plain_attention(q, k, v, 0.3)))
    assert largest < count**2 / 8
    assert_close(found[0], attend(q, k, v, scale=0.3)[0], 1e-12)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 3, 4), (9, 1, 2)], ids=str)
def test_pooled_tokens(stride):
    """Means of what a cell has, with their gradients."""
    x = volume(2, 2, 3 * 5 * 6, 4).requires_grad_()
    found, expected = pool_tokens(x, [3, 5, 6], list(stride)), pool(x, (3, 5, 6), stride)
    assert found.shape[2] == torch.tensor(pooled_shape([3, 5, 6], list(stride))).prod()
    assert_close(found, expected, 1e-14)
    upstream = volume(*found.shape, seed=5)
    assert_close(*(torch.autograd.grad(out, x, upstream)[0] for out in (found, expected)), 1e-14)


@pytest.mark.parametrize("joint", [False, True])
def test_cells_in_half_precision_are_computed_in_single(joint):
    """Which alone has room for what hides a pair."""
    q, k, v = (leaf.detach().half() for leaf in tokens((5, 7)))
    pair = volume(1, 2, 9, 9).half() if joint else None
    options = (["window"] * 2, [3, 3], [1, 1], not joint, 0.5, 0.0)
    found = plain_cells(q, k, v, [], pair, [5, 7], *options)
    pair = None if pair is None else pair.float()
    expected = plain_cells(q.float(), k.float(), v.float(), [], pair, [5, 7], *options)
    assert found.dtype == torch.float16
    assert torch.equal(found, expected.half())
