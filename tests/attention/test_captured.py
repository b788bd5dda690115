"""Every pattern traced, exported and run by ONNX Runtime at sizes other than those of the capture."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

import attn3d
from attn3d.attention.captured import attend_captured
from tests.attention.layers import tokens
from tests.configurations import randomise
from tests.marks import some
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import assert_close, volume

pytestmark = [pytest.mark.scorecard("captures"), pytest.mark.usefixtures("on_the_cpu")]

# (pattern, position bias)
PATTERNS = [
    (("window", {"size": (2, 3, 4), "shift": True}), "axis"),
    ("global", None),
    (("window", {"size": 3}), "joint"),
    (("window", {"size": 2, "shift": True}), None),
    (("grid", {"size": 2}), "axis"),
    (("grid", {"size": 3}), "joint"),
    ("axial", None),
    (("neighborhood", {"size": 3, "dilation": (1, 2, 1)}), "axis"),
    (("neighborhood", {"size": 3}), None),
    (("neighborhood", {"size": (2, 3, 4), "stride": (2, 1, 3)}), "axis"),
    (("neighborhood", {"size": 3, "dilation": 2, "stride": 3}), "axis"),
    (("pooled_keys", {"stride": 2}), None),
]
# Sizes that windows divide; that they do not divide; axes smaller than a window or of size 1; larger than SEEN.
SEEN = (2, 4, 4, 6, 8)
OTHERS = [(2, 4, 4, 6, 8), (1, 4, 5, 7, 3), (3, 4, 1, 2, 1), (1, 4, 9, 6, 5), (1, 4, 2, 2, 6)]
MECHANISMS = [
    ("non_local", {}),
    ("non_local", {"pattern": ("window", {"size": 3, "shift": True})}),
    ("non_local", {"pattern": ("grid", {"size": 2})}),
    ("non_local", {"mode": "dot_product", "pattern": ("pooled_keys", {"stride": 2})}),
    ("non_local", {"mode": "gaussian", "pattern": "axial"}),
    ("danet", {"pattern": ("window", {"size": 3})}),
    ("danet", {"pattern": ("neighborhood", {"size": 3})}),
]


def make(name, options):
    return randomise(attn3d.create_attention(name, spatial_dims=3, channels=4, **options)).eval()


MODULES = [("mhsa", {"num_heads": 2, "pattern": pattern, "position_bias": bias}) for pattern, bias in PATTERNS]
MODULES += MECHANISMS
DEFAULT = [MODULES[0], MODULES[6], MODULES[7]]


@pytest.mark.parametrize("seen", some([SEEN, (1, 4, 5, 7, 3)], lambda shape: shape != SEEN), ids=str)
@pytest.mark.parametrize(("name", "options"), MODULES, ids=str)
def test_a_trace_holds_for_other_sizes(name, options, seen):
    """Output and gradient of the input; the traced size may or may not be a multiple of the window."""
    net = make(name, options).double()
    traced = torch.jit.trace(net, (volume(*seen),))
    for shape in OTHERS:
        x = volume(*shape, seed=3).requires_grad_()
        found, expected = traced(x), net(x)
        assert_close(found, expected, 1e-12)
        gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected)]
        assert_close(*gradients, 1e-10)


@pytest.mark.parametrize("module", some(MODULES, lambda module: module != DEFAULT[0]), ids=str)
def test_an_export_holds_for_other_sizes_or_raises(module):
    """A guard may reject a size, such as one at which an axis has a single window; no size gives a wrong result."""
    net = make(*module).double()
    dynamic = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC)
    program = torch.export.export(net, (volume(2, 4, 6, 8, 12),), dynamic_shapes=(dynamic,)).module()
    refused, others = [], [*OTHERS, (1, 4, 7, 8, 11), (2, 4, 10, 5, 9)]
    for shape in others:
        x = volume(*shape, seed=3)
        try:
            found = program(x)
        except AssertionError as error:
            refused.append(str(error))
            continue
        assert_close(found, net(x), 1e-12)
    assert all("Guard failed" in message for message in refused)
    assert len(refused) <= len(others) - 2


POOLED = ("mhsa", {"num_heads": 2, "pattern": ("pooled_keys", {"stride": 2}), "position_bias": None})
PAIRED = ("paired", {"pattern": ("pooled_keys", {"stride": 2})})
ONE = (2, 4, 2, 2, 2)  # a single window or block along every axis
EXPORTS = [(module, SEEN) for module in MODULES]
EXPORTS += [(module, ONE) for module in (POOLED, PAIRED, MODULES[0], MODULES[2], MODULES[5])]
REGULAR = [(DEFAULT[0], SEEN), (POOLED, ONE)]


@pytest.mark.parametrize("export", some(EXPORTS, lambda export: export not in REGULAR), ids=str)
def test_onnx_holds_for_other_sizes(export):
    module, seen = export
    net = make(*module)
    dynamic = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        net, (volume(*seen).float(),), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=(dynamic,)
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for shape in OTHERS:
        x = volume(*shape, seed=7).float()
        (found,) = session.run(None, {"x": x.cpu().numpy()})
        torch.testing.assert_close(torch.from_numpy(found), net(x).cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value_width", [3, 8, 13])
def test_views_and_unequal_widths_stay_in_the_kernel(value_width):
    """For a plain view of a volume, PyTorch's function alone would build N x M scores."""
    count = 300
    layer = attn3d.attention.VolumeAttention(1, 1)
    q, k = (volume(1, 1, 8, count, seed=seed).transpose(2, 3) for seed in (0, 1))
    v = volume(1, 1, count, value_width)
    traced = torch.jit.trace(lambda q, k, v: layer(q, k, v, [count]), (q, k, v))
    found = []
    assert largest_output(lambda: found.append(traced(q, k, v))) < count**2 / 8
    assert_close(found[0], layer(q, k, v, [count]), 1e-12)


@pytest.mark.parametrize("pattern", [attn3d.Window(3, shift=True), attn3d.Axial(), attn3d.Neighborhood(3)], ids=str)
def test_half_precision_equals_single_up_to_rounding(pattern):
    q, k, v = (leaf.detach().half() for leaf in tokens((5, 7)))
    single = attend_captured(q.float(), k.float(), v.float(), [5, 7], pattern, lambda _: None, None, 0.5, 0.0)
    found = attend_captured(q, k, v, [5, 7], pattern, lambda _: None, None, 0.5, 0.0)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), single, rtol=0, atol=4e-3)
