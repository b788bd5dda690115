"""Multi-head self-attention: comparison with `torch.nn.MultiheadAttention`, heads and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attn3d
from tests.configurations import randomise
from tests.mechanisms.parity import assert_close, assert_gradients_close, names_of_inputs, volume


def self_attention(spatial_dims, channels, **options):
    return randomise(attn3d.MultiHeadSelfAttention(spatial_dims, channels, **options).double())


@pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked", "math"])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)], ids=str)
def test_equals_the_attention_of_pytorch(shape, heads, backend):
    module = self_attention(len(shape), 8, num_heads=heads, backend=backend)
    oracle = nn.MultiheadAttention(8, heads, batch_first=True).double()
    with torch.no_grad():
        for parameter, value in zip(oracle.parameters(), module.parameters(), strict=True):
            parameter.copy_(value.view_as(parameter))

    x = volume(2, 8, *shape).requires_grad_()
    tokens = x.flatten(2).transpose(1, 2)
    expected = oracle(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, shape)
    output = module(x)
    assert_close(output, expected)
    inputs, expected_inputs = [x, *module.parameters()], [x, *oracle.parameters()]
    assert_gradients_close(output, inputs, expected, expected_inputs, names_of_inputs(module))


@pytest.mark.parametrize(
    ("channels", "heads"), [(1, 1), (6, 6), (8, 8), (9, 3), (11, 1), (12, 6), (33, 3), (64, 8), (96, 8)]
)
def test_the_default_heads_are_the_largest_divisor_up_to_eight(channels, heads):
    assert attn3d.MultiHeadSelfAttention(3, channels).num_heads == heads


@pytest.mark.scorecard("repeats")
@pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked", "math"])
def test_dropout_is_off_in_eval(backend):
    """Outputs are bitwise equal, also in a trace."""
    x = volume(2, 8, 2, 3, 4)
    module = self_attention(3, 8, dropout=0.9, backend=backend).eval()
    assert torch.equal(module(x), self_attention(3, 8, backend=backend).eval()(x))
    torch.testing.assert_close(torch.jit.trace(module, (x,))(x), module(x))


@pytest.mark.parametrize("backend", ["auto", "chunked", "math"])
def test_dropout_keeps_the_mean_of_the_weights(backend):
    """The mean of many outputs in training is the output in eval, to five standard errors."""
    draws = 4096
    torch.manual_seed(0)
    module = self_attention(1, 4, num_heads=2, dropout=0.5, backend=backend)
    x = volume(1, 4, 3)
    drawn = module.train()(x.expand(draws, -1, -1))
    error = 5 * drawn.std(0) / draws**0.5
    assert (drawn.std(0) > 0).all()
    assert ((drawn.mean(0) - module.eval()(x)[0]).abs() < error).all()


def test_the_reported_rows_are_those_of_the_heads():
    """With identity maps for values and output, y is the product of the rows and the voxels."""
    module = self_attention(3, 4, num_heads=2)
    weight, bias, out_weight, out_bias = module.parameters()
    with torch.no_grad():
        weight[8:].copy_(torch.eye(4).view_as(weight[8:]))
        out_weight.copy_(torch.eye(4).view_as(out_weight))
        bias[8:].zero_()
        out_bias.zero_()
    x = volume(2, 4, 4, 3, 2)
    queries = torch.tensor([0, 7, 23])
    rows = module.attention_weights(x, queries)["query"]
    assert rows.shape == (2, 2, 3, 4, 3, 2)
    torch.testing.assert_close(rows.sum((3, 4, 5)), torch.ones(2, 2, 3, dtype=torch.float64))
    values = x.flatten(2).unflatten(1, (2, 2))
    expected = torch.einsum("bhqn,bhdn->bhdq", rows.flatten(3), values).flatten(1, 2)
    torch.testing.assert_close(module(x).flatten(2)[:, :, queries], expected)
