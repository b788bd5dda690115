"""The non-local block: its four pairwise functions, pooled keys, patterns and reported weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d, linear, max_pool3d

import attn3d
from tests.configurations import randomise, running_statistics
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import (
    assert_close,
    assert_close_to_reference,
    assert_gradients_close,
    names_of_inputs,
    volume,
)

MODES = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 5), (3, 4), (1, 3, 5), (2, 1, 7), (3, 3, 2), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pooled_keys(mode, shape):
    """Pools 2 x 2 voxels; drops a last odd voxel; keeps an axis of one voxel."""
    options = {"mode": mode, "sub_sample": True}
    module = randomise(attn3d.NonLocal(len(shape), 4, **options).double())
    assert_close_to_reference(module, CASES["non_local"].reference, volume(2, 4, *shape), options)
    keys = module.attention_weights(volume(2, 4, *shape))["query"].shape[3:]
    assert keys == tuple(max(1, size // 2) for size in shape)


@pytest.mark.parametrize("reduction", [1, 2, 16])
@pytest.mark.parametrize("mode", MODES)
def test_inner_widths(mode, reduction):
    options = {"mode": mode, "reduction": reduction}
    module = randomise(attn3d.NonLocal(2, 4, **options).double())
    assert_close_to_reference(module, CASES["non_local"].reference, volume(2, 4, 3, 2), options)


def naive(module, x):
    """The formulas of the dot_product and concatenation blocks in evaluation, with every pair of voxels."""
    value, value_bias, query, query_bias, key, key_bias, *pair, out, out_bias, norm, norm_bias = (
        parameter.flatten(1) if parameter.dim() > 1 else parameter for parameter in module.parameters()
    )
    tokens = x.flatten(2).transpose(1, 2)
    values, queries, keys = (
        linear(tokens, *layer) for layer in ((value, value_bias), (query, query_bias), (key, key_bias))
    )
    count = keys.shape[1]
    if pair:
        rows = queries[:, :, None].expand(-1, -1, count, -1)
        columns = keys[:, None].expand(-1, count, -1, -1)
        energies = linear(torch.cat([rows, columns], 3), pair[0]).squeeze(3).relu()
    else:
        energies = queries @ keys.transpose(1, 2)
    y = linear(energies / count @ values, out, out_bias)
    ((average, variance),) = running_statistics(module)
    y = (y - average) / (variance + 1e-5).sqrt() * norm + norm_bias
    return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3], ids="offset{}".format)
@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_the_short_forms_equal_the_sum_over_pairs(mode, offset):
    """Also if all or none of the pairs are zero after ReLU."""
    module = randomise(attn3d.NonLocal(3, 8, mode=mode, reduction=1).double()).eval()
    key_bias, pair = list(module.parameters())[5:7]
    with torch.no_grad():
        key_bias += offset * (pair[0, 8:].sign() if mode == "concatenation" else 1)
    x = volume(2, 8, 5, 6, 7).requires_grad_()
    inputs = [x, *module.parameters()]
    expected, output = naive(module, x), module(x)
    assert_close(output, expected)
    assert_gradients_close(output, inputs, expected, inputs, names_of_inputs(module))


@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_the_short_forms_with_equal_voxels(mode):
    module = randomise(attn3d.NonLocal(3, 8, mode=mode).double()).eval()
    x = volume(2, 8, 1, 1, 1).expand(2, 8, 3, 4, 2)
    torch.testing.assert_close(module(x), naive(module, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_reported_rows_are_those_of_the_block(mode, sub_sample):
    """With identity maps and no norm, z - x is the product of the rows and the (pooled) voxels."""
    module = attn3d.NonLocal(3, 4, mode=mode, reduction=1, norm=None, sub_sample=sub_sample).double()
    randomise(module)
    with torch.no_grad():
        value, value_bias, *_, out, out_bias = module.parameters()
        for weight, bias in ((value, value_bias), (out, out_bias)):
            weight.copy_(torch.eye(4).view_as(weight))
            bias.zero_()
    x = volume(2, 4, 4, 3, 2)
    values = max_pool3d(x, 2) if sub_sample else x
    queries = torch.tensor([0, 7, 23])
    rows = module.attention_weights(x, queries)["query"]
    assert rows.shape == (2, 1, 3, *values.shape[2:])
    if "gaussian" in mode:
        torch.testing.assert_close(rows.sum((3, 4, 5)), torch.ones_like(rows[..., 0, 0, 0]))
    expected = torch.einsum("bqn,bcn->bcq", rows[:, 0].flatten(2), values.flatten(2))
    torch.testing.assert_close((module(x) - x).flatten(2)[:, :, queries], expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_reported_rows_are_over_the_means_of_pooled_keys(mode):
    """With identity maps and no norm, z - x is the product of the rows and the means of the blocks."""
    module = attn3d.NonLocal(2, 4, mode=mode, reduction=1, norm=None, pattern=attn3d.PooledKeys((2, 3))).double()
    randomise(module)
    with torch.no_grad():
        value, value_bias, *_, out, out_bias = module.parameters()
        for weight, bias in ((value, value_bias), (out, out_bias)):
            weight.copy_(torch.eye(4).view_as(weight))
            bias.zero_()
    x = volume(2, 4, 6, 9)
    rows = module.attention_weights(x, torch.tensor([0, 5, 53]))["query"]
    assert rows.shape == (2, 1, 3, 3, 3)
    expected = torch.einsum("bqn,bcn->bcq", rows[:, 0].flatten(2), avg_pool2d(x, (2, 3)).flatten(2))
    torch.testing.assert_close((module(x) - x).flatten(2)[:, :, [0, 5, 53]], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sub_sample": True, "pattern": "axial"},
            r"`sub_sample` supports only the pattern 'global', got Axial",
        ),
        (
            {"mode": "dot_product", "pattern": "axial"},
            r"`mode` 'dot_product' supports the patterns Global and PooledKeys, got",
        ),
        (
            {"mode": "concatenation", "pattern": ("window", {"size": 2})},
            r"`mode` 'concatenation' supports .* got Window",
        ),
    ],
)
def test_unsupported_patterns(options, message):
    with pytest.raises(ValueError, match=message):
        attn3d.NonLocal(3, 4, **options)
