"""How attention is computed. The method never changes the result, only its time and its memory."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn3d.arguments import one_of, probability
from attn3d.attention.budget import room_for_scores, within_budget
from attn3d.attention.kernels import attend_on_cores
from attn3d.attention.memory import MOST_PARTS, MemoryBudget, needs_gradient, parallel_parts, read_bytes
from attn3d.attention.operators import attend_tiled, row_numbers
from attn3d.attention.plain import LARGEST_CUDA_GRID, equal_widths, plain_attention
from attn3d.attention.tiles import Dropout
from attn3d.capture import at_least_single, without_autocast

METHODS = ("auto", "fused", "chunked", "reference")

# Without the math fallback: it would silently build N x M where the kernels refuse.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


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
    method: str = "auto",
    memory_budget: MemoryBudget = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v over N queries and M keys (arXiv 1706.03762, equation 1), never building N x M.

    A query all of whose keys are masked, or have a bias of -inf, gets 0. Autocast has no part in it: the result
    has the dtype of the queries, in which keys and values are taken.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v); d_v may differ from d.
        scale: of the products; 1 / sqrt(d) by default.
        key_mask: (B, M), true where a key may be seen.
        bias: added to the scaled products, broadcastable to (B, H, N, M); it may require a gradient.
        dropout: probability of dropping a weight. It is applied whenever it is above 0: pass 0 in evaluation.
            Which weights are dropped is drawn from PyTorch's generator, and is the same in every method.
        method: "fused", PyTorch's kernel; "chunked", an exact operator by tiles, which serves what the kernel
            cannot; "reference", the plain form that builds N x M; "auto", the fastest that is exact and within
            the budget.
        memory_budget: bytes beyond q, k and v that forward and, where a gradient is asked for, backward may
            take, as a number or as "2GiB"; None: by shapes, dtype and kind of device alone. Compiled, when sizes
            may be symbols, tiles are cut by their scores alone, and what goes with them is left out.

    Returns:
        (B, H, N, d_v).

    Raises:
        TypeError: when ``memory_budget`` is no number of bytes, or numbers are of a type that does not fit.
        ValueError: when shapes do not fit, ``method`` is unknown or cannot serve these arguments, or the budget
            cannot be met, with the bytes that each method takes and the smallest budget that works.
    """
    _check(q, k, v, key_mask, bias)
    one_of("method", method, METHODS)
    probability("dropout", dropout)
    read_bytes("memory_budget", memory_budget)
    scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
    k, v = k.to(q.dtype), v.to(q.dtype)
    seed = draw_seed(q) if dropout > 0.0 else None
    if q.shape[0] == 0 or k.shape[0] == 0:
        method = "reference"  # nothing to build, and the kernels take no empty batch
    if method == "auto":
        method = choose_method(
            q, k, v, key_mask=key_mask, bias=bias, dropout=dropout, memory_budget=memory_budget
        ).method
    elif method != "reference":
        within_budget([method], q, k, v, key_mask, bias, dropout, memory_budget)
    if method == "reference":
        return _reference(q, k, v, scale, key_mask, bias, dropout, seed)
    if method == "chunked":
        room = room_for_scores(q, k, v, bias, dropout, memory_budget)
        return attend_tiled(q, k, v, bias, key_mask, seed, scale, dropout, room)[0]
    reason = refusal_of_fused(q, k, v, key_mask, bias, dropout)
    if reason:
        raise ValueError(f"`method` 'fused' does not serve {reason}; method='chunked' does")
    return _fused(q, k, v, scale, key_mask, bias)


class Choice(NamedTuple):
    """What "auto" takes, and why."""

    method: str
    reason: str


def choose_method(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    memory_budget: MemoryBudget = None,
) -> Choice:
    """What `attend` would choose for these arguments with the method "auto", and why.

    Raises:
        ValueError: when the budget cannot be met, saying what would do.
    """
    refusal = refusal_of_fused(q, k, v, key_mask, bias, dropout)
    if refusal:
        method = within_budget(["chunked"], q, k, v, key_mask, bias, dropout, memory_budget)
        return Choice(method, f"the fused kernel does not serve {refusal}")
    method = within_budget(["fused", "chunked"], q, k, v, key_mask, bias, dropout, memory_budget)
    if method == "fused":
        return Choice(method, "PyTorch's kernel serves these arguments, and is the fastest")
    return Choice(method, f"the fused kernel would take more than {memory_budget}")


def draw_seed(q: Tensor) -> Tensor:
    """A seed from PyTorch's generator, for the hash that drops weights."""
    return torch.randint(2**31, (), device=q.device)


def refusal_of_fused(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None, dropout: float
) -> str:
    """Why PyTorch's kernel cannot serve, or an empty string."""
    if dropout > 0.0:
        return "dropout on the weights"
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return "a bias that requires a gradient"
    if bias is not None and torch.promote_types(bias.dtype, q.dtype) != q.dtype:
        return "a bias of higher precision than the queries"
    if key_mask is not None and q.dtype == torch.float16:
        return "a key mask in half precision, which has no room for it"
    if q.is_cuda:
        if max(q.shape[:2]) > LARGEST_CUDA_GRID:
            return f"a batch or heads of more than {LARGEST_CUDA_GRID}"
        if max(q.shape[-1] + (key_mask is not None), v.shape[-1]) > 256:
            return "head dimensions above 256"
        if bias is not None and q.shape[2] * k.shape[2] > 2**31:
            return "a bias over more than 2^31 pairs"
    return ""


def _check(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"`q`, `k` and `v` must be (B, H, N, d), got {q.dim()}, {k.dim()} and {v.dim()} dimensions")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"`q` and `k` must have the same last size, got {q.shape[-1]} and {k.shape[-1]}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"`k` and `v` must agree in (B, H, M), got {tuple(k.shape[:3])} and {tuple(v.shape[:3])}")
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(f"`q` and `k` must agree in (B, H), got {tuple(q.shape[:2])} and {tuple(k.shape[:2])}")
    if not q.is_floating_point():
        raise TypeError(f"`q` must be of floating point numbers, got {q.dtype}")
    if 0 in q.shape[1:3] or k.shape[2] == 0:
        raise ValueError(
            f"`q` and `k` must have at least one head, query and key, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if key_mask is not None:
        if key_mask.dtype != torch.bool:
            raise ValueError(f"`key_mask` must be boolean, got {key_mask.dtype}")
        if key_mask.shape != (k.shape[0], k.shape[2]):
            raise ValueError(f"`key_mask` must be (B, M) = {(k.shape[0], k.shape[2])}, got {tuple(key_mask.shape)}")
    if bias is not None:
        if not bias.is_floating_point():
            raise TypeError(f"`bias` must be of floating point numbers, which are added, got {bias.dtype}")
        full = (*q.shape[:3], k.shape[2])
        if bias.dim() != 4 or any(size not in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
            raise ValueError(f"`bias` must broadcast to (B, H, N, M) = {full} in 4-D, got {tuple(bias.shape)}")


@without_autocast
def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    key_mask: Tensor | None,
    bias: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """The formula, in at least single precision."""
    weights = attention_rows(q, k, scale, key_mask, bias)
    if seed is not None:
        every = slice(None)
        keys = torch.arange(k.shape[2], device=k.device).view(1, 1, -1)
        weights = weights * Dropout(dropout, seed, row_numbers(q), keys).keep(every, every, weights.dtype)
    return (weights @ v.to(weights.dtype)).to(q.dtype)


@without_autocast
def attention_rows(
    q: Tensor, k: Tensor, scale: float, key_mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The softmax rows of the queries ``q``, (B, H, N, M), in at least single precision.

    It builds what it returns: ask for few queries.
    """
    scores = (at_least_single(q) * scale) @ at_least_single(k).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -math.inf)
    if bias is None and key_mask is None:
        return functional.softmax(scores, -1)
    keyless = (scores == -math.inf).all(-1, keepdim=True)  # its softmax is 0 / 0
    return functional.softmax(scores.masked_fill(keyless, 0.0), -1).masked_fill(keyless, 0.0)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, key_mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """PyTorch's kernel, with its math fallback forbidden and key masks folded into a head dimension."""
    if key_mask is not None:
        q = torch.cat([q * scale, torch.ones_like(q[..., :1])], 3)
        hidden = torch.zeros_like(k[..., :1]).masked_fill(~key_mask[:, None, :, None], -1e30)
        k = torch.cat([k, hidden], 3)
        scale = 1.0
    if _leaves_cores_idle(q, k, v, bias):
        out = attend_on_cores(*equal_widths(q, k, v), scale)[0][..., : v.shape[-1]]
    else:
        with sdpa_kernel(KERNELS):
            out = plain_attention(q, k, v, scale, mask=None if bias is None else bias.detach().to(q.dtype))
    if key_mask is not None:
        out = out.masked_fill(~key_mask.any(-1)[:, None, None, None], 0.0)
    return out


def _leaves_cores_idle(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel's backward would have fewer sequences than there are cores, and enough to do."""
    if q.device.type != "cpu" or bias is not None or torch.compiler.is_exporting():
        return False
    if not needs_gradient(q, k, v) or q.shape[2] * k.shape[2] < 2**20:
        return False
    sequences = q.shape[0] * q.shape[1]
    # How many cores there are is a question that a compiler cannot trace: then the operator asks it when it runs.
    return sequences < MOST_PARTS if torch.compiler.is_compiling() else parallel_parts(sequences) > 1
