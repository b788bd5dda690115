"""Tiles of every size: the online softmax, its recomputation in backward, and dropout by a hash."""

from __future__ import annotations

import math

import pytest
import torch

from attn3d.attention import tiled
from tests.attention.exactness import (
    DTYPES,
    MASKS,
    QUERIES,
    SCALE,
    assert_as_exact_as_the_plain_form,
    case,
)
from tests.mechanisms.parity import assert_close

SIZES = [1, 7, QUERIES - 1, QUERIES, QUERIES + 5]


def attention_of(tile: tiled.Tile):
    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, key_mask, bias):
            out, logsumexp = tiled.forward(q, k, v, tiled.Softmax(SCALE, bias, key_mask), tile)
            ctx.save_for_backward(q, k, v, key_mask, bias, out, logsumexp)
            return out

        @staticmethod
        def backward(ctx, gradient):
            q, k, v, key_mask, bias, out, logsumexp = ctx.saved_tensors
            grad_bias = None if bias is None else torch.zeros_like(bias, dtype=logsumexp.dtype)
            softmax = tiled.Softmax(SCALE, bias, key_mask)
            grads = tiled.backward(gradient, q, k, v, out, logsumexp, softmax, tile, grad_bias)
            return *(grad.to(q.dtype) for grad in grads), None, None if bias is None else grad_bias.to(bias.dtype)

    return Attend.apply


@pytest.mark.scorecard("backends")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tile_of_any_size_is_as_exact_as_the_plain_form(dtype, mask, size, count_cases):
    assert_as_exact_as_the_plain_form(attention_of(tiled.Tile(size, size)), dtype, mask)
    count_cases(2)  # forward and backward


@pytest.mark.parametrize("tile", [(1, 18), (18, 1), (4, 6), (13, 5)], ids=str)
def test_a_tile_need_not_be_square(tile):
    assert_as_exact_as_the_plain_form(attention_of(tiled.Tile(*tile)), torch.float64, "keys_and_bias")


@pytest.mark.parametrize("size", SIZES)
def test_the_logsumexp_is_that_of_the_rows(size):
    """It is -inf where a row has no key."""
    (q, k, v), _, bias, *_ = case(torch.float64, "hiding_bias")
    _, found = tiled.forward(q, k, v, tiled.Softmax(SCALE, bias), tiled.Tile(size, size))
    expected = torch.logsumexp(q @ k.transpose(2, 3) * SCALE + bias, 3)
    assert (expected[:, :, 3] == -math.inf).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_rising_scores_do_not_overflow():
    """The largest score of a row comes last, so that each tile rescales the previous sums."""
    q = torch.ones(1, 1, 1, 1)
    k = torch.linspace(-1e4, 1e4, 9).view(1, 1, 9, 1)
    v = torch.arange(9.0).view(1, 1, 9, 1)
    for keys in (1, 2, 9):
        out, logsumexp = tiled.forward(q, k, v, tiled.Softmax(1.0), tiled.Tile(1, keys))
        assert out.item() == 8.0
        assert logsumexp.item() == 1e4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_does_not_reach_the_sums(dtype):
    """Sums are in at least single precision, whatever the caller's autocast."""
    (q, k, v), key_mask, bias, upstream, *_ = case(dtype, "keys_and_bias")
    softmax, tile = tiled.Softmax(SCALE, bias, key_mask), tiled.Tile(4, 4)
    out, logsumexp = tiled.forward(q, k, v, softmax, tile)
    gradients = tiled.backward(upstream, q, k, v, out, logsumexp, softmax, tile)
    with torch.autocast("cpu", torch.bfloat16):
        cast_out, cast_logsumexp = tiled.forward(q, k, v, softmax, tile)
        cast = tiled.backward(upstream, q, k, v, out, logsumexp, softmax, tile)
    assert torch.equal(cast_out, out)
    assert torch.equal(cast_logsumexp, logsumexp)
    assert all(torch.equal(found, reference) for found, reference in zip(cast, gradients, strict=True))


def kept(probability: float, seed: int, rows: int = 400, keys: int = 300) -> torch.Tensor:
    dropout = tiled.Dropout(probability, torch.tensor(seed), torch.arange(rows).view(1, 1, -1), torch.arange(keys))
    dropout = dropout._replace(keys=dropout.keys.view(1, 1, -1))
    return dropout.factor(slice(None), slice(None), torch.float64)[0, 0]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_dropout_keeps_the_expected_share(probability, seed):
    """Overall, in every row and in every column, to five standard errors."""
    share = (kept(probability, seed) > 0).double()
    for axes in ((0, 1), (0,), (1,)):
        drawn = share.numel() / max(1, share.mean(axes).numel())
        error = 5 * math.sqrt(probability * (1 - probability) / drawn)
        assert ((share.mean(axes) - (1 - probability)).abs() < error).all()


@pytest.mark.parametrize("offset", [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (64, 0), (0, 256)], ids=str)
def test_dropout_is_not_correlated_between_pairs(offset):
    signs = torch.where(kept(0.5, 3) > 0, 1.0, -1.0)
    rows, keys = offset
    product = signs[rows:, keys:] * signs[: signs.shape[0] - rows, : signs.shape[1] - keys]
    assert abs(product.mean().item()) < 5 / math.sqrt(product.numel())


def test_dropout_differs_by_seed():
    signs = [torch.where(kept(0.5, seed) > 0, 1.0, -1.0) for seed in (3, 4)]
    assert abs((signs[0] * signs[1]).mean().item()) < 5 / math.sqrt(signs[0].numel())


@pytest.mark.parametrize("size", SIZES)
def test_dropout_does_not_depend_on_the_tile(size):
    (q, k, v), *_ = case(torch.float64, "none")
    rows = torch.arange(q[..., 0].numel()).view(q.shape[:3])
    dropout = tiled.Dropout(0.4, torch.tensor(5), rows, torch.arange(k.shape[2]).view(1, 1, -1))
    softmax = tiled.Softmax(SCALE, dropout=dropout)
    whole, _ = tiled.forward(q, k, v, softmax, tiled.Tile(99, 99))
    parts, _ = tiled.forward(q, k, v, softmax, tiled.Tile(size, size))
    assert_close(parts, whole, 1e-14)
