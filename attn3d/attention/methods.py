"""How attention is computed. The method never changes the result, only its time and its memory."""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn3d.arguments import one_of, probability
from attn3d.precision import at_least_single

METHODS = ("auto", "fused", "reference")

# Without the math fallback: it would silently build N x N where the kernels refuse.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


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
) -> Tensor:
    """softmax(scale q k^T + bias) v over N queries and M keys (arXiv 1706.03762, equation 1).

    A query all of whose keys are masked gets 0.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v); d_v may differ from d.
        scale: of the products; 1 / sqrt(d) by default.
        key_mask: (B, M), true where a key may be seen.
        bias: added to the scaled products, broadcastable to (B, H, N, M).
        dropout: probability of dropping a weight. It is applied whenever it is above 0: pass 0 in evaluation.
        method: "fused", PyTorch's kernel; "reference", the plain form that builds N x M, the one that takes
            dropout and a bias that is learnt; "auto", the fastest that is exact and builds no N x M.

    Returns:
        (B, H, N, d_v).

    Raises:
        ValueError: when shapes do not fit, or ``method`` is unknown or cannot serve these arguments.
    """
    _check(q, k, v, key_mask, bias)
    one_of("method", method, METHODS)
    probability("dropout", dropout)
    scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
    if method == "reference":
        return _reference(q, k, v, scale, key_mask, bias, dropout)
    if torch.jit.is_scripting() or torch.onnx.is_in_onnx_export():
        return functional.scaled_dot_product_attention(
            q, k, v, _merge(key_mask, bias, q), dropout, scale=scale
        )
    if dropout > 0.0:
        raise ValueError(f"`dropout` of {dropout} is served by method='reference', got method={method!r}")
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"a `bias` that requires a gradient is served by method='reference', got {method!r}")
    if q.shape[0] == 0 or k.shape[0] == 0:
        return _reference(q, k, v, scale, key_mask, bias, dropout)  # the kernels take no empty batch
    return _fused(q, k, v, scale, key_mask, bias)


def _check(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(
            f"`q`, `k` and `v` must be (B, H, N, d), got {q.dim()}, {k.dim()} and {v.dim()} dimensions"
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"`q` and `k` must have the same last size, got {q.shape[-1]} and {k.shape[-1]}")
    if k.shape[2] != v.shape[2]:
        raise ValueError(f"`k` and `v` must have the same number of keys, got {k.shape[2]} and {v.shape[2]}")
    if key_mask is not None and (key_mask.dim() != 2 or key_mask.dtype != torch.bool):
        raise ValueError(f"`key_mask` must be boolean and (B, M), got {key_mask.dtype} {key_mask.dim()}-D")
    if bias is not None and bias.dim() != 4:
        raise ValueError(f"`bias` must have 4 dimensions that broadcast to (B, H, N, M), got {bias.dim()}")


def _merge(key_mask: Tensor | None, bias: Tensor | None, q: Tensor) -> Tensor | None:
    """One mask in the form of `scaled_dot_product_attention`."""
    if key_mask is None:
        return bias if bias is None else bias.to(q.dtype)
    seen = key_mask[:, None, None, :]
    return seen if bias is None else bias.to(q.dtype).masked_fill(~seen, -math.inf)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    key_mask: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """The formula, in at least single precision."""
    with torch.autocast(q.device.type, enabled=False):
        weights = attention_rows(q, k, scale, key_mask, bias)
        return (functional.dropout(weights, dropout) @ v.to(weights.dtype)).to(q.dtype)


def attention_rows(
    q: Tensor, k: Tensor, scale: float, key_mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The softmax rows of the queries ``q``, (..., N, M), in at least single precision.

    It builds what it returns: ask for few queries.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = (at_least_single(q) * scale) @ at_least_single(k).transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None, :], -math.inf)
        weights = functional.softmax(scores, -1)
        if key_mask is not None:  # a row without a key is 0 / 0
            weights = weights.masked_fill(~key_mask.any(-1)[:, None, None, None], 0.0)
        return weights


def _fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """PyTorch's kernel, with its math fallback forbidden."""
    with sdpa_kernel(_KERNELS):
        return plain(q, k, v, scale, 0.0, _merge(key_mask, bias, q))


def plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """PyTorch's kernel on inputs that it accepts: last stride 1, equal head dimensions.

    Plain operators alone, for what captures operators: scripting, tracing, ONNX.
    """
    width = v.shape[-1]
    common = max(q.shape[-1], width)
    if q.is_cuda:
        common = (common + 7) // 8 * 8  # what the CUDA kernels ask for
    q, k, v = _widen(q, common), _widen(k, common), _widen(v, common)
    return functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)[..., :width]


def _widen(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return functional.pad(x, [0, width - x.shape[-1]])
    return x if x.stride(-1) == 1 else x.contiguous()
