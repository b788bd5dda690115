"""The continuous position bias: a small network of the offset, for windows of any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import attn3d
from attn3d import Grid, Neighborhood, Window
from tests.attention.layers import BACKENDS, HEADS, Captured, Scoped, assert_results, tokens
from tests.configurations import randomise
from tests.marks import some
from tests.mechanisms.parity import assert_close, volume
from tests.memory import peak
from tests.references.attention import attend_within

PATTERNS = [Window(3, shift=True), Window((2, 4)), Grid(3), Neighborhood(3), Neighborhood((3, 5), dilation=(2, 1))]
SHAPE = (5, 7)


def make(pattern, backend="auto", spatial_dims=2):
    captured = backend == "captured"
    layer = attn3d.attention.VolumeAttention(
        spatial_dims,
        HEADS,
        pattern=pattern,
        position_bias="continuous",
        backend="auto" if captured else backend,
    ).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.0, 0.3, generator=torch.Generator().manual_seed(3))
    return layer, Captured(layer) if captured else layer


def table_of(layer, sizes):
    """B = 16 sigmoid(W_2 relu(W_1 o + b_1)) for each offset o."""
    first_weight, first_bias, second_weight = layer.parameters()
    columns = []
    for offset in itertools.product(*(range(1 - size, size) for size in sizes)):
        logarithms = [math.copysign(math.log(1 + abs(step)), step) for step in offset]
        hidden = sum(first_weight[:, axis] * value for axis, value in enumerate(logarithms)) + first_bias
        energy = (second_weight * torch.where(hidden > 0, hidden, 0.0)).sum(1)
        columns.append(16 / (1 + torch.exp(-energy)))
    return torch.stack(columns, 1)


def with_network(output, leaves, layer):
    """The output, and the gradients of q, k, v and the parameters."""
    inputs = [*leaves, *layer.parameters()]
    gradients = torch.autograd.grad(output, inputs, volume(*output.shape, seed=9))
    names = ["q", "k", "v", "first_weight", "first_bias", "second_weight"]
    return {"output": output.detach()} | dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "sdpa"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_equals_the_loops(pattern, backend):
    layer, run = make(pattern, backend)
    rule, leaves = Scoped(pattern).rule(2), tokens(SHAPE)
    expected, _ = attend_within(rule, *leaves, SHAPE, table=table_of(layer, rule.size), table_kind="joint")
    assert_results(with_network(run(*leaves, list(SHAPE)), leaves, layer), with_network(expected, leaves, layer))


def test_another_window_at_inference():
    """The network gives the bias of a window of another size; offsets that both windows have keep their bias."""
    layer, _ = make(Window(3))
    leaves = tokens(SHAPE)
    layer.pattern = Window((4, 5), shift=True)
    rule = Scoped(layer.pattern).rule(2)
    expected, _ = attend_within(rule, *leaves, SHAPE, table=table_of(layer, (4, 5)), table_kind="joint")
    assert_close(layer(*leaves, list(SHAPE)), expected)
    small, large = layer.continuous_bias((2, 2)), layer.continuous_bias((4, 5))
    assert_close(small.unflatten(1, (3, 3)), large.unflatten(1, (7, 9))[:, 2:5, 3:6])


def test_sdpa_gives_no_gradient_of_the_bias():
    layer, _ = make(Window(3), "sdpa")
    with pytest.raises(ValueError, match="`backend` 'sdpa' does not support a bias that requires a gradient"):
        layer(*tokens(SHAPE), list(SHAPE))
    with torch.no_grad():
        assert_close(layer(*tokens(SHAPE), list(SHAPE)), make(Window(3))[0](*tokens(SHAPE), list(SHAPE)))


@pytest.mark.parametrize("position_bias", ["axis", "continuous"])
def test_a_transform_of_the_input_alone(position_bias):
    """The parameters are outside the transform and require gradients."""
    module = attn3d.MultiHeadSelfAttention(
        2, 8, num_heads=2, pattern=Window(2, shift=True), position_bias=position_bias, dropout=0.5
    )
    module = randomise(module.double()).eval()
    x = volume(1, 8, 3, 2)
    expected = torch.autograd.functional.jacobian(module, x)
    assert_close(torch.func.jacrev(module)(x), expected, 1e-12)
    assert_close(torch.func.vmap(torch.func.jacrev(module))(x[None])[0], expected, 1e-12)
    given = x.clone().requires_grad_()
    wanted = [given, *module.parameters()]
    once, mapped = module(given), torch.func.vmap(module)(given[None])[0]
    for found, right in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (mapped, once)), strict=True):
        assert_close(found, right, 1e-12)


@pytest.mark.scorecard("captures")
def test_a_trace_holds_for_other_sizes():
    net = attn3d.MultiHeadSelfAttention(2, 8, pattern=Window(3, shift=True), position_bias="continuous").double().eval()
    traced = torch.jit.trace(net, (volume(1, 8, 6, 6),))
    assert_close(traced(volume(2, 8, 7, 5)), net(volume(2, 8, 7, 5)), 1e-12)


@pytest.mark.parametrize("training", some([True, False], lambda training: not training))
def test_memory_is_estimated_within_a_tenth(training):
    shape = (1, 16, 24, 24, 8)
    module = attn3d.MultiHeadSelfAttention(
        3, 16, num_heads=2, pattern=Window((4, 4, 2)), position_bias="continuous"
    ).train(training)
    x = torch.randn(shape, requires_grad=training)

    def step():
        with torch.set_grad_enabled(training):
            y = module(x)
        if training:
            y.backward(torch.ones_like(y))
            x.grad = None
            module.zero_grad()

    step()
    assert attn3d.estimate_memory(module, shape, training=training) == pytest.approx(peak(step), rel=0.1)


def test_half_precision_and_autocast():
    layer, _ = make(Window(3))
    leaves = [leaf.detach() for leaf in tokens(SHAPE)]
    expected = layer(*leaves, list(SHAPE))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(*(leaf.float() for leaf in leaves), list(SHAPE))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    halved = layer.bfloat16()(*(leaf.bfloat16() for leaf in leaves), list(SHAPE))
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.double(), expected, rtol=0, atol=0.1)
