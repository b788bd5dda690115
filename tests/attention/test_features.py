"""Positions, norms, cosine scores and registers of attention over voxels, against loops over tokens."""

from __future__ import annotations

import copy
import math

import onnxruntime
import pytest
import torch

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Features, RotaryPosition, create_features
from tests.attention.layers import BACKENDS, Scoped
from tests.configurations import randomise
from tests.marks import plain_id, some
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.memory import peak
from tests.references import features as loops
from tests.references.attention import attend, attend_within, pool

CHANNELS, HEADS = 14, 2  # heads of 7 channels: in 3-D one is not rotated, in 2-D three
AXIAL, MIXED = ("rope", {"spacing": (1.0, 3.0)}), ("rope", {"mixed": True, "base": 7.0, "spacing": (0.5, 2.0)})
PATTERNS = [Global(), PooledKeys(2), Window(3, shift=True), Grid(2), Axial(), Neighborhood(3, dilation=2)]
FORMS = [
    {"position": AXIAL},
    {"position": MIXED},
    {"qk_norm": True},
    {"scores": "cosine"},
    {"position": MIXED, "qk_norm": True, "scores": "cosine"},
]


def make(spatial_dims=2, channels=CHANNELS, num_heads=HEADS, **options):
    module = randomise(
        attn3d.MultiHeadSelfAttention(spatial_dims, channels, num_heads=num_heads, **options).double(), 5
    )
    if options.get("scores") == "cosine":
        module.attention.features.temperature.data.copy_(torch.linspace(0.002, 0.3, num_heads))
    return module


def reference(module, x, pattern, position=None, qk_norm=False, scores="dot", registers=0):
    """The formula, computed from the module's parameters."""
    given, shape = dict(module.named_parameters()), tuple(x.shape[2:])
    rule, heads = Scoped(pattern).rule(len(shape)), module.num_heads
    width = x.shape[1] // heads

    def project(tokens):
        y = tokens @ given["qkv.weight"].T + given["qkv.bias"]
        return [y[..., part * x.shape[1] :][..., : x.shape[1]].unflatten(-1, (heads, width)) for part in range(3)]

    q, k, v = (part.transpose(1, 2) for part in project(x.flatten(2).transpose(1, 2)))
    if rule.name == "pooled_keys":
        k, v = pool(k, shape, rule.size), pool(v, shape, rule.size)
    beside = None
    if registers:
        beside = [part.transpose(0, 1).expand(len(x), -1, -1, -1) for part in project(given["registers"])[1:]]
    parts = {"query": [q], "key": [k] if beside is None else [k, beside[0]]}
    for name, tokens in parts.items():
        if qk_norm:
            weight = given[f"attention.features.{name}_norm.weight"]
            tokens = [loops.root_mean_square_norm(one, weight) for one in tokens]
        if scores == "cosine":
            tokens = [loops.unit(one) for one in tokens]
        if position is not None:
            options = {"base": loops.default_base("mixed" in position[1]), **position[1]}
            options.pop("mixed", None)
            stride = rule.size if name == "key" and rule.name == "pooled_keys" else None
            frequencies = given.get("attention.features.position.frequencies")
            where = loops.places(shape, stride)
            tokens[0] = loops.rotate(tokens[0], where, frequencies=frequencies, **options)
        parts[name] = tokens
    (q,), k = parts["query"], torch.cat(parts["key"], 2)
    scale = loops.scale_of(width, scores)
    if scores == "cosine":
        temperature = given["attention.features.temperature"]
        q = q / torch.where(temperature > 0.01, temperature, 0.01)[:, None, None]
    if rule.name in ("global", "pooled_keys"):
        y, _ = attend(q, k, v if beside is None else torch.cat([v, beside[1]], 2), scale=scale)
    else:
        y, _ = attend_within(rule, q, k, v, shape, scale=scale)
    y = y.transpose(1, 2).flatten(2) @ given["out.weight"].T + given["out.bias"]
    return y.transpose(1, 2).unflatten(2, shape)


def assert_as_the_loops(module, pattern, x, **options):
    found, expected = module(x), reference(module, x, pattern, **options)
    assert_close(found, expected)
    inputs = [x, *module.parameters()]
    assert_gradients_close(found, inputs, expected, inputs, ["x", *dict(module.named_parameters())])


@pytest.mark.parametrize("backend", BACKENDS[:-1])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_loops(form, pattern, backend):
    x = volume(2, CHANNELS, 4, 5).requires_grad_()
    assert_as_the_loops(make(pattern=pattern, backend=backend, **form), pattern, x, **form)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 2, 4), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("pattern", [Global(), PooledKeys(2)], ids=str)
def test_every_number_of_axes(pattern, shape, mixed):
    position = ("rope", {"mixed": mixed, "spacing": (0.7, 1.0, 5.0)[: len(shape)], "base": 20.0})
    x = volume(1, CHANNELS, *shape).requires_grad_()
    module = make(len(shape), pattern=pattern, position=position)
    if not mixed:
        position = ("rope", {name: value for name, value in position[1].items() if name != "mixed"})
    assert_as_the_loops(module, pattern, x, position=position)


@pytest.mark.parametrize("backend", BACKENDS[:-1])
@pytest.mark.parametrize("pattern", [Global(), PooledKeys((2, 3))], ids=str)
@pytest.mark.parametrize("form", [{}, FORMS[-1]], ids=str)
def test_registers_are_keys_in_addition_to_the_voxels(form, pattern, backend):
    form = form | {"registers": 3}
    x = volume(2, CHANNELS, 4, 5).requires_grad_()
    module = make(pattern=pattern, backend=backend, **form)
    assert_as_the_loops(module, pattern, x, **form)
    rows = module.attention_weights(x)["query"].flatten(2)
    assert 1e-3 < 1 - rows.sum(2).mean() < 1


def test_registers_need_global_or_pooled_keys():
    with pytest.raises(
        ValueError, match="`registers` are supported by the patterns 'global' and 'pooled_keys', got Wind"
    ):
        make(pattern=Window(2), registers=1)


def test_a_position_is_relative():
    """Moving a volume within a larger one does not change the weights between its voxels."""
    rotary = RotaryPosition(2, 1, 8, spacing=(1.0, 2.5))
    q, k = (volume(1, 1, 12, 8, seed=seed) for seed in (0, 1))
    here = [torch.arange(3), torch.arange(4)]
    there = [along + shift for along, shift in zip(here, (11, 5), strict=True)]
    scores = [rotary(q, where) @ rotary(k, where).mT for where in (here, there)]
    assert_close(*scores)
    assert not torch.allclose(scores[0], q @ k.mT)


def test_positions_distinguish_shuffled_voxels():
    """Global attention without a position does not."""
    x, order = volume(1, CHANNELS, 9), torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])
    plain, placed = make(1), make(1, position="rope")
    assert_close(plain(x[..., order]), plain(x)[..., order])
    assert not torch.allclose(placed(x[..., order]), placed(x)[..., order], atol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_attention_weights_are_those_that_are_applied(mixed):
    """With identity maps for values and output, y is the product of the weights and the voxels."""
    module = make(2, position=("rope", {"mixed": mixed}), qk_norm=True)
    with torch.no_grad():
        module.qkv.weight[2 * CHANNELS :] = module.out.weight[:] = torch.eye(CHANNELS)
        module.qkv.bias[2 * CHANNELS :] = module.out.bias[:] = 0
    x, chosen = volume(2, CHANNELS, 3, 4), torch.tensor([0, 7, 11])
    rows = module.attention_weights(x, chosen)["query"].flatten(3)
    expected = torch.einsum("bhqn,bhdn->bhdq", rows, x.flatten(2).unflatten(1, (HEADS, -1))).flatten(1, 2)
    assert_close(module(x).flatten(2)[:, :, chosen], expected)


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian"])
@pytest.mark.parametrize("pattern", some([Global(), PooledKeys(2), Window(3)], lambda one: one == Window(3)), ids=str)
def test_the_non_local_block_takes_positions(mode, pattern):
    x = volume(2, 8, 4, 5).requires_grad_()
    module = randomise(attn3d.NonLocal(2, 8, mode=mode, pattern=pattern, position=AXIAL, norm=None).double())
    q, k, v, shape = module.compared(x)
    rule, shape = Scoped(pattern).rule(2), tuple(shape)
    if rule.name == "pooled_keys":
        k, v = pool(k, shape, rule.size), pool(v, shape, rule.size)
    stride = rule.size if rule.name == "pooled_keys" else None
    options = {"base": 100.0, "spacing": AXIAL[1]["spacing"]}
    q, k = loops.rotate(q, loops.places(shape), **options), loops.rotate(k, loops.places(shape, stride), **options)
    if rule.name == "window":
        y, _ = attend_within(rule, q, k, v, shape, scale=1.0)
    else:
        y, _ = attend(q, k, v, scale=1.0)
    expected = x + (y[:, 0] @ module.out.weight.T + module.out.bias).transpose(1, 2).unflatten(2, shape)
    inputs = [x, *module.parameters()]
    found = module(x)
    assert_close(found, expected)
    assert_gradients_close(found, inputs, expected, inputs, ["x", *dict(module.named_parameters())])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mhsa", {"position": "rpoe"}, "`position` got 'rpoe'; did you mean 'rope'"),
        ("mhsa", {"position": ("rope", {"mixd": True})}, "'rope' has no option `mixd`; did you mean 'mixed'"),
        ("mhsa", {"position": ("rope", {"heads": 3})}, "the position 'rope' has no option `heads`"),
        ("mhsa", {"position": ("rope", {"base": -1.0})}, "`base` must be positive, got -1.0"),
        ("mhsa", {"position": ("rope", {"base": "10"})}, "`base` must be a number, got '10'"),
        ("mhsa", {"position": ("rope", {"spacing": (1.0, 2.0)})}, r"must be positive, one or 3, got \(1.0, 2.0\)"),
        ("mhsa", {"position": ("rope", {"spacing": math.nan})}, "`spacing` must be positive, one or 3, got nan"),
        ("mhsa", {"position": "rope", "num_heads": 4}, "'rope' needs at least 6 channels in every head, got 2"),
        ("mhsa", {"qk_norm": "layer"}, "`qk_norm` must be True or False, got 'layer'"),
        ("mhsa", {"scores": "cosin"}, "`scores` got 'cosin'; did you mean 'cosine'"),
        ("mhsa", {"registers": -1}, "`registers` must be at least 0, got -1"),
        ("mhsa", {"registers": 2.0}, "`registers` must be an integer, got 2.0"),
        ("non_local", {"position": "rope", "sub_sample": True}, r"`position` must be None with .*PooledKeys\(2\)"),
        ("non_local", {"position": "rope", "mode": "dot_product"}, "`position` is supported by the softmax modes only"),
    ],
    ids=plain_id,
)  # fmt: skip
def test_invalid_options_are_named(name, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        attn3d.create_attention(name, spatial_dims=3, channels=8, **options)


CAPTURED = [
    ({"position": AXIAL, "registers": 2}, Global()),
    (FORMS[-1] | {"registers": 1}, PooledKeys(2)),
    ({"position": MIXED}, Window(3, shift=True)),
]


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize(("form", "pattern"), CAPTURED, ids=str)
def test_a_trace_holds_for_other_sizes(form, pattern):
    net = make(pattern=pattern, **form).eval()
    traced = torch.jit.trace(net, (volume(2, CHANNELS, 4, 6),))
    for shape in ((1, CHANNELS, 5, 9), (3, CHANNELS, 8, 7)):
        x = volume(*shape, seed=3).requires_grad_()
        assert_close(traced(x), net(x), 1e-12)
        gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (traced, net)]
        assert_close(*gradients, 1e-10)


@pytest.mark.nightly
@pytest.mark.scorecard("captures")
@pytest.mark.parametrize(("form", "pattern"), CAPTURED, ids=str)
def test_exports_and_compiled_graphs_hold_for_other_sizes(form, pattern):
    net, example = make(pattern=pattern, **form).float().eval(), (volume(2, CHANNELS, 4, 6).float(),)
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    program = torch.export.export(net, example, dynamic_shapes=dynamic).module()
    compiled = torch.compile(net, backend="aot_eager", dynamic=True, fullgraph=True)
    model = torch.onnx.export(net, example, dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=dynamic)
    session = onnxruntime.InferenceSession(model.model_proto.SerializeToString())
    x = volume(1, CHANNELS, 5, 9, seed=3).float()
    for captured in (program, compiled):
        torch.testing.assert_close(captured(x), net(x), rtol=1e-4, atol=1e-5)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-5)


def test_the_default_base_is_that_of_the_paper():
    assert [RotaryPosition(2, 1, 8, mixed=mixed).base for mixed in (False, True)] == [100.0, 10.0]


def test_lengths_do_not_overflow_in_half_precision():
    keys = Features(1, 1, 4, scores="cosine").keys(torch.full((1, 1, 2, 4), 4e4, dtype=torch.half))
    assert keys.dtype == torch.half
    assert (keys == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast(dtype):
    """The angles of hundreds of voxels are precise: the error is that of rounding q and k."""
    form = FORMS[-1] | {"position": AXIAL, "registers": 2}
    net = attn3d.MultiHeadSelfAttention(2, CHANNELS, num_heads=HEADS, **form)
    x = volume(1, CHANNELS, 2, 300).float()
    expected = net(x)
    with torch.autocast("cpu", dtype):
        found = net(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    halved = copy.deepcopy(net).to(dtype)(x.to(dtype))
    assert halved.dtype == dtype
    torch.testing.assert_close(halved.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("form", [{"position": "rope", "qk_norm": True}, {"position": MIXED, "registers": 4}], ids=str)
def test_memory_is_estimated_within_a_tenth(form):
    shape = (1, 24, 40, 40)
    module = attn3d.MultiHeadSelfAttention(2, 24, num_heads=2, **form)
    x = torch.randn(shape, requires_grad=True)

    def step():
        y = module(x)
        y.backward(torch.ones_like(y))
        x.grad = None
        module.zero_grad()

    step()
    assert attn3d.estimate_memory(module, shape) == pytest.approx(peak(step), rel=0.1)


def test_features_are_created_only_if_an_option_changes_queries_or_keys():
    assert create_features(2, 2, 4) is None
    assert create_features(2, 2, 4, position=None, qk_norm=False, scores="dot") is None
    q, k = volume(2, 2, 6, 4).double(), volume(2, 2, 6, 4).double()
    found = create_features(2, 2, 4, scores="cosine").double()(q, k, Global(), [2, 3])
    torch.testing.assert_close(found, (q / q.norm(dim=-1, keepdim=True) / 0.1, k / k.norm(dim=-1, keepdim=True)))
    for options in ({"qk_norm": True}, {"position": "rope"}):
        assert type(create_features(2, 2, 4, **options)) is Features
    with pytest.raises(TypeError, match="'norm'"):
        create_features(2, 2, 4, norm=True)
