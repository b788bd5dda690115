"""`attend`: softmax attention with a given backend, or with the fastest one that supports the arguments."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attn3d.arguments import MemoryBudget, one_of, probability, read_bytes
from attn3d.attention import sdpa
from attn3d.attention.memory import needs_grad
from attn3d.attention.operator import attend_tiled
from attn3d.attention.tiled import dropout_of, refuse_forward_mode
from attn3d.capture import at_least_single, is_captured, is_forward_mode, is_func_gradient, without_autocast

BACKENDS = ("auto", "sdpa", "chunked", "math")
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)  # the last two in captures


@without_autocast
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
    memory_budget: MemoryBudget = None,
) -> Tensor:
    """Computes softmax(scale q k^T + bias) v over N queries and M keys without building N x M.

    This is scaled dot-product attention (arXiv 1706.03762, equation 1). The output of a query is 0 if all its keys are
    masked or have a bias of -inf. Autocast is disabled: keys and values are cast to the dtype of the queries, which is
    the dtype of the result.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v); d_v may differ from d.
        scale: factor of the products q k^T; 1 / sqrt(d) by default.
        key_mask: (B, M), true where a key may be seen.
        bias: added to the scaled products, broadcastable to (B, H, N, M). It may require a gradient.
        dropout: probability of dropping a weight. It is applied whenever it is above 0: pass 0 in evaluation.
            The dropped weights depend on PyTorch's generator and are the same with every backend.
        backend: "sdpa" is PyTorch's fused kernel. "chunked" is an exact tiled operator, which supports all
            arguments. "math" is the plain formula, which builds N x M. "auto" uses the kernel if it supports the
            arguments within the budget, and tiles otherwise. The backend never changes the result beyond rounding.
        memory_budget: bytes that forward and, if a gradient is required, backward may use in addition to q, k and v,
            as a number or a string such as "2GiB". With None, tiles of a few MiB are used. In a compiled graph,
            "auto" with a budget means "chunked".

    Returns:
        (B, H, N, d_v).

    Raises:
        TypeError: if an argument has the wrong type, or a dtype that does not fit.
        RuntimeError: if a derivative in forward mode is computed with another backend than "math", or a gradient of
            `torch.func` with tiles.
        ValueError: if shapes do not fit, ``backend`` is unknown or does not support the arguments, or the budget is
            too small; the message gives the smallest budget that works.
    """
    _check(q, k, v, scale, key_mask, bias)
    one_of("backend", backend, BACKENDS)
    probability("dropout", dropout)
    budget = read_bytes("memory_budget", memory_budget)
    scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
    k, v = k.to(q.dtype), v.to(q.dtype)
    seed = draw_seed(q) if dropout > 0.0 else None
    training = needs_grad(q, k, v, bias)
    if backend == "math" or q.shape[0] == 0:  # the kernels do not accept an empty batch
        weights = attention_rows(q, k, scale, key_mask, bias)
        dropped = dropout_of(q, k, dropout, seed)
        if dropped is not None:
            weights = weights * dropped.factor(slice(None), slice(None), weights.dtype)
        return (weights @ v.to(weights.dtype)).to(q.dtype)
    if is_forward_mode():  # PyTorch would take the result of a custom operator for a constant
        refuse_forward_mode()
    reason = sdpa.refusal(q, k, v, key_mask, bias, dropout)
    if backend == "sdpa" and reason:
        raise ValueError(f"`backend` 'sdpa' does not support {reason}; backend='chunked' does")
    fused = backend == "sdpa" or (backend == "auto" and not reason)
    if fused and budget is not None:
        if torch.compiler.is_compiling():  # sizes may be symbolic and must not be compared
            fused = backend == "sdpa"
        else:
            needed = sdpa.fused_bytes(q, k, v, training, key_mask, bias)
            if needed > budget and backend == "sdpa":
                raise ValueError(f"`memory_budget` must be at least {needed} bytes with 'sdpa', got {budget}")
            fused = needed <= budget
    if fused:
        return sdpa.attend_fused(q, k, v, scale, key_mask, bias)
    if training and not is_captured() and is_func_gradient():
        raise RuntimeError("`backend` 'chunked' has no gradient in torch.func; backend='math' and 'sdpa' have one")
    return attend_tiled(q, k, v, bias, key_mask, seed, scale, dropout, training, budget)[0]


def draw_seed(q: Tensor) -> Tensor:
    """Draws a seed from PyTorch's generator, for the hash that decides which weights are dropped."""
    return torch.randint(2**31, (), device=q.device)


def check_scale(scale: Any) -> None:
    """Checks that ``scale`` is a number or None."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, _NUMBERS)):
        raise TypeError(f"`scale` must be a number or None, got {scale!r}")


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None, key_mask: Tensor | None, bias: Tensor | None) -> None:
    for name, given in (("q", q), ("k", k), ("v", v)):
        if not isinstance(given, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor, got {type(given).__name__}")
        if not given.is_floating_point():
            raise TypeError(f"`{name}` must have a floating point dtype, got {given.dtype}")
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"`q`, `k` and `v` must be (B, H, N, d), got {q.dim()}, {k.dim()} and {v.dim()} dimensions")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"`q` and `k` must have the same last size, got {q.shape[-1]} and {k.shape[-1]}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"`k` and `v` must agree in (B, H, M), got {tuple(k.shape[:3])} and {tuple(v.shape[:3])}")
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(f"`q` and `k` must agree in (B, H), got {tuple(q.shape[:2])} and {tuple(k.shape[:2])}")
    check_scale(scale)
    if 0 in q.shape[1:3] or k.shape[2] == 0:
        raise ValueError(
            f"`q` and `k` must have at least one head, query and key, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if key_mask is not None:
        if not isinstance(key_mask, Tensor):
            raise TypeError(f"`key_mask` must be a torch.Tensor, got {type(key_mask).__name__}")
        if key_mask.dtype != torch.bool:
            raise TypeError(f"`key_mask` must be boolean, got {key_mask.dtype}")
        if key_mask.shape != (k.shape[0], k.shape[2]):
            raise ValueError(f"`key_mask` must be (B, M) = {(k.shape[0], k.shape[2])}, got {tuple(key_mask.shape)}")
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise TypeError(f"`bias` must be a torch.Tensor, got {type(bias).__name__}")
        if not bias.is_floating_point():
            raise TypeError(f"`bias` must have a floating point dtype, got {bias.dtype}")
        full = (*q.shape[:3], k.shape[2])
        if bias.dim() != 4 or any(size not in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
            raise ValueError(f"`bias` must broadcast to (B, H, N, M) = {full} in 4-D, got {tuple(bias.shape)}")


@without_autocast
def attention_rows(
    q: Tensor, k: Tensor, scale: float, key_mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Returns the softmax rows of the queries ``q``, (B, H, N, M), in at least single precision.

    The rows are built in full: pass few queries.
    """
    scores = (at_least_single(q) * scale) @ at_least_single(k).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -math.inf)
    if bias is None and key_mask is None:
        return functional.softmax(scores, -1)
    keyless = (scores == -math.inf).all(-1, keepdim=True)  # the softmax would be 0 / 0
    return functional.softmax(scores.masked_fill(keyless, 0.0), -1).masked_fill(keyless, 0.0)
