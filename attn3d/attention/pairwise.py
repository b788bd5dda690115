"""Pairwise functions without a softmax: arXiv 1711.07971, equations 4 and 5, computed without N x M."""

import torch
from torch import Tensor

from attn3d.capture import at_least_single, without_autocast


@without_autocast
def dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes y_i = sum_j (q_i . k_j) v_j / M as q (k^T v) / M.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v).

    Returns:
        (B, H, N, d_v) in the dtype of q.
    """
    summary = (at_least_single(k) / k.shape[2]).transpose(2, 3) @ at_least_single(v)
    return (at_least_single(q) @ summary).to(q.dtype)


@without_autocast
def rectified_sum(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Computes y_i = sum_j relu(a_i + b_j) v_j / M in O((N + M) log (N + M)).

    In the keys sorted by b, those with b_j > -a_i are contiguous and last. Let G and H be the sums of v_j and b_j v_j
    from the first of these keys to the last; then y_i = (a_i G + H) / M. For accuracy, a and b are first shifted to
    equal means, by opposite amounts, which leaves every a_i + b_j unchanged.

    Args:
        a: (B, H, N).
        b: (B, H, M).
        v: (B, H, M, d_v).

    Returns:
        (B, H, N, d_v) in the dtype of a. On CUDA the result is not deterministic, because `torch.cumsum` is not.
    """
    dtype = a.dtype
    a, b = at_least_single(a), at_least_single(b)
    offset = ((a.mean(2, keepdim=True) - b.mean(2, keepdim=True)) / 2).detach()
    a, b = a - offset, b + offset
    first = _not_above(b.detach(), -a.detach()).unsqueeze(3).expand(-1, -1, -1, v.shape[3])
    b, order = b.sort(2)
    v_sorted = (at_least_single(v) / b.shape[2]).gather(2, order.unsqueeze(3).expand_as(v))
    values = _sum_from(v_sorted).gather(2, first)
    products = _sum_from(b.unsqueeze(3) * v_sorted).gather(2, first)
    return (a.unsqueeze(3) * values + products).to(dtype)


def _not_above(b: Tensor, limits: Tensor) -> Tensor:
    """Counts the b that are not above each limit, (B, H, N), like `torch.searchsorted`, which ONNX does not have."""
    keys = b.shape[2]
    order = torch.cat([b, limits], 2).sort(2)[1]  # ties may come in any order: relu(0) adds nothing
    counts = (order < keys).to(order.dtype).cumsum(2)
    return torch.zeros_like(order).scatter(2, order, counts)[:, :, keys:]


def _sum_from(x: Tensor) -> Tensor:
    """Returns the sums from each key to the last, followed by 0 for queries that see no key."""
    sums = x.flip(2).cumsum(2).flip(2)
    return torch.cat([sums, torch.zeros_like(x[:, :, :1])], 2)
