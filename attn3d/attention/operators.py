"""Attention by tiles as an operator of PyTorch: it compiles, exports and differentiates without being unrolled.

It returns the log-sum-exp of the rows too, and is differentiable in it, so that parts of a softmax can be
merged. It has no second derivative.
"""

import torch
from torch import Tensor

from attn3d.attention import tiles
from attn3d.attention.memory import tile_within


def logsumexp_like(q: Tensor) -> Tensor:
    """An empty (B, H, N) in at least single precision."""
    return q.new_empty(list(q.shape[:3]), dtype=torch.promote_types(q.dtype, torch.float32))


def row_numbers(q: Tensor) -> Tensor:
    """A number for every row of the scores, (B, H, N)."""
    return torch.arange(q[..., 0].numel(), device=q.device).view(q.shape[:3])


def _dropout_of(q: Tensor, k: Tensor, probability: float, seed: Tensor | None) -> tiles.Dropout | None:
    if seed is None:
        return None
    keys = torch.arange(k.shape[2], device=k.device).view(1, 1, -1)
    return tiles.Dropout(probability, seed, row_numbers(q), keys)


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
    room: int,
) -> tuple[Tensor, Tensor]:
    """See `attn3d.attention.tiles.forward`; ``seed`` is None without dropout, ``room`` the bytes of a tile."""
    tile = tile_within(room, q.shape[0] * q.shape[1], q.shape[2], k.shape[2])
    return tiles.forward(q, k, v, scale, tile, bias, key_mask, _dropout_of(q, k, dropout, seed))


@attend_tiled.register_fake
def _(q, k, v, bias, key_mask, seed, scale, dropout, room):
    return q.new_empty([*q.shape[:3], v.shape[3]]), logsumexp_like(q)


@torch.library.custom_op("attn3d::attend_tiled_backward", mutates_args=())
def _attend_tiled_backward(
    gradient: Tensor,
    gradient_logsumexp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    bias_needs_gradient: bool,
    scale: float,
    dropout: float,
    room: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tile = tile_within(room, q.shape[0] * q.shape[1], q.shape[2], k.shape[2])
    bias_gradient = torch.zeros_like(bias, dtype=logsumexp.dtype) if bias_needs_gradient else None
    grad_q, grad_k, grad_v = tiles.backward(
        gradient, gradient_logsumexp, q, k, v, out, logsumexp, scale, tile,
        bias, key_mask, _dropout_of(q, k, dropout, seed), bias_gradient,
    )  # fmt: skip
    bias_gradient = q.new_empty([0]) if bias_gradient is None else bias_gradient.to(bias.dtype)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), bias_gradient


@_attend_tiled_backward.register_fake
def _(gradient, gradient_logsumexp, q, k, v, out, logsumexp, bias, key_mask, seed, bias_needs_gradient, *_):
    grad_bias = torch.empty_like(bias) if bias_needs_gradient else q.new_empty([0])
    return q.new_empty(list(q.shape)), k.new_empty(list(k.shape)), v.new_empty(list(v.shape)), grad_bias


def _save_tiled(ctx, inputs, output):
    q, k, v, bias, key_mask, seed, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, bias, key_mask, seed, *output)
    ctx.set_materialize_grads(False)


def _differentiate_tiled(ctx, gradient, gradient_logsumexp):
    q, k, v, bias, key_mask, seed, out, logsumexp = ctx.saved_tensors
    gradient = torch.zeros_like(out) if gradient is None else gradient
    grads = _attend_tiled_backward(
        gradient, gradient_logsumexp, q, k, v, out, logsumexp, bias, key_mask, seed,
        ctx.needs_input_grad[3], *ctx.constants,
    )  # fmt: skip
    grad_bias = grads[3] if ctx.needs_input_grad[3] else None
    return *grads[:3], grad_bias, *[None] * 5


attend_tiled.register_autograd(_differentiate_tiled, setup_context=_save_tiled)


def refuse_second_derivative(backward: torch.library.CustomOpDef) -> None:
    """Makes the derivative of an operator's backward an error that says what has one."""

    def refuse(ctx, *gradients):
        raise RuntimeError("attention in this method has no second derivative; method='reference' has one")

    backward.register_autograd(refuse)


refuse_second_derivative(_attend_tiled_backward)
