"""The pairwise functions without a softmax, compared with the sum over all pairs."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn

import attn3d
from attn3d.attention import dot_product, rectified_sum
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume


def every_pair(a, b, v):
    return (a.unsqueeze(3) + b.unsqueeze(2)).relu() @ v / b.shape[2]


def leaves(queries=23, keys=17, dtype=torch.float64):
    shapes = ((2, 3, queries), (2, 3, keys), (2, 3, keys, 4))
    return [volume(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


CAPTURES = {
    "eager": lambda function, inputs: function,
    "trace": lambda function, inputs: torch.jit.trace(function, tuple(x.detach() for x in inputs)),
}


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0, 1e3])
@pytest.mark.parametrize("counts", [(1, 1), (1, 9), (9, 1), (23, 17)], ids=str)
def test_rectified_sum(counts, offset, capture):
    """With no, some and all pairs above zero, and with opposite offsets; gradients of a, b and v."""
    inputs = leaves(*counts)
    run = CAPTURES[capture](rectified_sum, inputs)
    a, b, v = inputs
    for moved in ((a + offset, b), (a + offset, b - offset)):
        found, expected = run(*moved, v), every_pair(*moved, v)
        if expected.abs().max() == 0:
            assert found.abs().max() < 1e-12
        else:
            assert_close(found, expected, 1e-10)
            assert_gradients_close(found, inputs, expected, inputs, "abv")


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("name", ["rectified_sum", "dot_product"])
def test_no_all_pairs_in_any_capture(name, capture):
    """In forward and backward; the check detects the form with all pairs."""
    count = 400
    if name == "rectified_sum":
        inputs, function, plain = leaves(count, count), rectified_sum, every_pair
    else:
        inputs = [volume(1, 1, count, 4).requires_grad_() for _ in range(3)]
        function, plain = dot_product, lambda q, k, v: q @ k.mT @ v / k.shape[2]
    captured = CAPTURES[capture](function, inputs)
    captured(*inputs).sum().backward()  # the first runs of a trace optimise it
    assert largest_output(lambda: captured(*inputs).sum().backward()) < count**2 / 4
    assert largest_output(lambda: plain(*inputs).sum().backward()) >= count**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_of_large_values_stay_finite(dtype):
    """The sum over the keys exceeds the largest number in half precision; the result is their mean."""
    a, b, v = (x.detach().abs().to(dtype) for x in leaves(50, 4000))
    v = v * 60
    assert v.double().sum(2).max() > 65504
    found = rectified_sum(a, b, v)
    assert found.dtype == dtype
    expected = every_pair(a.double(), b.double(), v.double())
    assert_close(found.double(), expected, 4 * torch.finfo(dtype).eps)


class _Compared(nn.Module):
    def forward(self, a, b, v):
        return rectified_sum(a, b, v)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("what", ["function", pytest.param("block", marks=pytest.mark.nightly)])
def test_exports_to_onnx_with_dynamic_counts(what):
    """ONNX Runtime runs the model on more voxels than the export had."""
    dynamic = torch.export.Dim.DYNAMIC
    if what == "function":
        net, inputs = _Compared(), tuple(x.detach() for x in leaves(9, 8, torch.float32))
        others = tuple(x.detach() for x in leaves(12, 15, torch.float32))
        shapes = ({2: dynamic},) * 3
    else:
        net = attn3d.NonLocal(2, 4, mode="concatenation").eval()
        inputs, others = (volume(2, 4, 5, 6).float(),), (volume(3, 4, 7, 5).float(),)
        shapes = (dict.fromkeys((0, 2, 3), dynamic),)
    program = torch.onnx.export(net, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for given in (inputs, others):
        feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), given, strict=True)}
        torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), net(*given))
