"""Tiled attention as one custom operator, which compilers do not unroll and which keeps to a memory budget.

It has no second derivative, and no derivative of the log-sum-exp that it also returns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from attn3d.attention.memory import largest_tile, register_scratch, result_bytes
from attn3d.attention.tiled import (
    Softmax,
    Tile,
    backward,
    dropout_of,
    forward,
    logsumexp_like,
    refuse_second_derivative,
    tile_of,
)


def tile_within(
    budget: int | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, training: bool
) -> Tile:
    """Returns the largest tile with which attention stays within the budget, not counting q, k and v.

    Raises:
        ValueError: if no tile does; the message gives the smallest budget that works.
    """

    def tile(tile_bytes: int) -> Tile:
        return tile_of(tile_bytes, q.shape[0] * q.shape[1], q.shape[2], k.shape[2])

    def taken(tile_bytes: int) -> int:
        return results + 3 * tile_scratch(tile(tile_bytes), q, k, v, dropout, training or converted) // 2

    # The part of a bias for a tile is copied if its dtype is not that of the scores.
    converted = bias is not None and bias.dtype != torch.promote_types(q.dtype, torch.float32)
    results = result_bytes(q, k, v, training)
    if training:  # two values per row, and the gradient of the bias
        results += max(4, q.element_size()) * 2 * q.shape[0] * q.shape[1] * q.shape[2]
        results += 0 if bias is None else bias.numel() * max(4, bias.element_size())
    return tile(largest_tile(budget, taken))


def tile_scratch(tile: Tile, q: Tensor, k: Tensor, v: Tensor, dropout: float, training: bool) -> int:
    """Returns the bytes of the scores of a tile, with all copies in memory at a time, and of its rows and keys."""
    d, d_v = q.shape[3], v.shape[3]
    copied = q.shape[1] > 1 or q.element_size() < 4  # to separate heads, or to convert to single precision
    per_pair = (2 if training else 1) + (6 if dropout > 0.0 else 0)  # scores and their gradients; integers of the hash
    per_row = d + 2 * d_v + 3  # scaled queries; outputs of this tile and of those before it; three sums
    per_key = d + d_v if copied else 0
    if training:
        per_row = d + 4 + (d_v if copied else 0)  # scaled queries; sums; gradient of the output
        if tile != (q.shape[2], k.shape[2]):  # gradients of the tile, which are added to those of the others
            per_row, per_key = per_row + d, per_key + d + d_v
    numbers = tile.queries * tile.keys * per_pair + tile.queries * per_row + tile.keys * per_key
    return max(4, q.element_size()) * q.shape[0] * q.shape[1] * numbers


@torch.library.custom_op("attn3d::attend_tiled", mutates_args=())
def attend_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout: float,
    training: bool,
    budget: int | None,
) -> tuple[Tensor, Tensor]:
    """Runs `forward` as an operator.

    ``seed`` is None without dropout. If ``training`` is true, a backward pass may follow, and the ``budget`` includes
    its memory.
    """
    tile = tile_within(budget, q, k, v, bias, dropout, training)
    return forward(q, k, v, Softmax(scale, bias, key_mask, dropout_of(q, k, dropout, seed)), tile)


@attend_tiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty([*q.shape[:3], v.shape[3]]), logsumexp_like(q)


@torch.library.custom_op("attn3d::attend_tiled_backward", mutates_args=())
def _attend_tiled_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    bias_needs_grad: bool,
    scale: float,
    dropout: float,
    training: bool,
    budget: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tile = tile_within(budget, q, k, v, bias, dropout, training)
    total = None if bias is None or not bias_needs_grad else torch.zeros_like(bias, dtype=logsumexp.dtype)
    softmax = Softmax(scale, bias, key_mask, dropout_of(q, k, dropout, seed))
    grad_q, grad_k, grad_v = backward(grad_out, q, k, v, out, logsumexp, softmax, tile, total)
    grad_bias = q.new_empty([0]) if total is None or bias is None else total.to(bias.dtype)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias


@_attend_tiled_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, bias: Any,
    key_mask: Any, seed: Any, bias_needs_grad: bool, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    grad_bias = torch.empty_like(bias) if bias_needs_grad else q.new_empty([0])
    return q.new_empty(list(q.shape)), k.new_empty(list(k.shape)), v.new_empty(list(v.shape)), grad_bias


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, bias, key_mask, seed, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, bias, key_mask, seed, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # otherwise zeros are allocated as the gradient of the log-sum-exp


def _differentiate(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, bias, key_mask, seed, out, logsumexp = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = _attend_tiled_backward(
        grad_out, q, k, v, out, logsumexp, bias, key_mask, seed, ctx.needs_input_grad[3], *ctx.constants
    )
    grad_bias = grads[3] if ctx.needs_input_grad[3] else None
    return *grads[:3], grad_bias, *[None] * 6


attend_tiled.register_autograd(_differentiate, setup_context=_save)
_attend_tiled_backward.register_autograd(refuse_second_derivative)


register_flop_formula(torch.ops.attn3d.attend_tiled)(lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v))
register_flop_formula(torch.ops.attn3d.attend_tiled_backward)(
    lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
)


@register_scratch(torch.ops.attn3d.attend_tiled.default)
def _scratch(*args: Any) -> int:
    q, k, v, bias, _, _, _, dropout, training, budget = args
    return tile_scratch(tile_within(budget, q, k, v, bias, dropout, training), q, k, v, dropout, False)


@register_scratch(torch.ops.attn3d.attend_tiled_backward.default)
def _scratch_backward(*args: Any) -> int:
    _, q, k, v, _, _, bias, _, _, _, _, dropout, training, budget = args
    return tile_scratch(tile_within(budget, q, k, v, bias, dropout, training), q, k, v, dropout, True)
