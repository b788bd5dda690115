"""Exact attention by tiles: an online softmax forward, recomputation backward (arXiv 2112.05682, 2205.14135).

A tile is the scores of a run of queries against a run of keys. Nothing larger is kept: forward returns the
output and the logarithm of every row's sum of exponentials, from which backward computes the tiles anew. All
sums are in at least single precision.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attn3d.capture import at_least_single, without_autocast


class Tile(NamedTuple):
    """How many queries and keys a tile has."""

    queries: int
    keys: int


class Dropout(NamedTuple):
    """Which weights are dropped: a hash of the seed, the row's number and the key's, whatever the tiles.

    Attributes:
        probability: of dropping a weight.
        seed: (), an integer.
        rows: numbers of the rows, (B, H, N).
        keys: numbers of the keys, broadcastable to (B, H, M).
    """

    probability: float
    seed: Tensor
    rows: Tensor
    keys: Tensor

    def keep(self, rows: slice, keys: slice, dtype: torch.dtype) -> Tensor:
        """For a tile, 1 / (1 - probability) where a weight is kept and 0 where it is dropped."""
        row = _hash(self.rows[:, :, rows] + self.seed)
        mixed = _hash(row.unsqueeze(3) + self.keys[:, :, None, keys] * 0x9E3779B1)
        return (mixed >= self.probability * 2.0**32).to(dtype) / (1.0 - self.probability)


def _hash(x: Tensor) -> Tensor:
    """Mixes the lower 32 bits of integers."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, key_mask: Tensor | None, rows: slice, keys: slice) -> Tensor:
    scores = q @ at_least_single(k[:, :, keys]).transpose(2, 3)
    if bias is not None:
        scores += bias[:, :, _clip(bias, 2, rows), _clip(bias, 3, keys)]
    if key_mask is not None:
        scores.masked_fill_(~key_mask[:, None, None, keys], -math.inf)
    return scores


def _clip(bias: Tensor, axis: int, part: slice) -> slice:
    """The part of a bias that a tile meets: all of it along an axis that broadcasts."""
    return slice(None) if bias.shape[axis] == 1 else part


def _runs(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@without_autocast
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    tile: Tile,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + bias) v and the rows' log-sum-exp, -inf for a row without a key, whose output is 0.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v).
        scale: of the products.
        tile: its size.
        bias: broadcastable to (B, H, N, M).
        key_mask: (B, M), true where a key may be seen.
        dropout: which weights are dropped.

    Returns:
        (B, H, N, d_v) in the dtype of q, and (B, H, N) in at least single precision.
    """
    batch, heads, queries, _ = q.shape
    out = q.new_empty([batch, heads, queries, v.shape[3]])  # a list, which MONAI's tensors ask for
    logsumexp = at_least_single(q.new_empty([0])).new_empty([batch, heads, queries])
    for rows in _runs(queries, tile.queries):
        q_tile = at_least_single(q[:, :, rows]) * scale
        largest = sums = total = None
        for keys in _runs(k.shape[2], tile.keys):
            weights = _scores(q_tile, k, bias, key_mask, rows, keys)
            top = weights.amax(3, keepdim=True)
            if largest is not None:
                top = torch.maximum(top, largest)
            base = top.masked_fill(top == -math.inf, 0.0)
            weights.sub_(base).exp_()
            row_sums = weights.sum(3, keepdim=True)
            if dropout is not None:
                weights *= dropout.keep(rows, keys, weights.dtype)
            part = weights @ at_least_single(v[:, :, keys])
            if largest is not None:
                shrink = torch.exp(largest - base)
                row_sums = row_sums.addcmul_(sums, shrink)
                part = part.addcmul_(total, shrink)
            largest, sums, total = top, row_sums, part
            del weights, part  # before the next tile is made
        out[:, :, rows] = total.div_(sums.masked_fill(sums == 0, 1.0))
        logsumexp[:, :, rows] = (largest + sums.log()).squeeze(3)
    return out, logsumexp


@without_autocast
def backward(
    gradient: Tensor,
    gradient_logsumexp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    tile: Tile,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    dropout: Dropout | None = None,
    bias_gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in at least single precision.

    Args:
        gradient: of the output.
        gradient_logsumexp: of the log-sum-exp, (B, H, N), or None.
        q: as in `forward`, and so the others of its names.
        k: see there.
        v: see there.
        out: what it returned.
        logsumexp: what it returned; +inf for a row that is to have no part.
        scale: see there.
        tile: see there.
        bias: see there.
        key_mask: see there.
        dropout: see there.
        bias_gradient: in at least single precision and of the bias's shape: its gradient is added here.
    """
    wide = logsumexp.dtype
    grad_q = q.new_empty(list(q.shape), dtype=wide)
    grad_k = k.new_zeros(list(k.shape), dtype=wide)
    grad_v = v.new_zeros(list(v.shape), dtype=wide)
    for rows in _runs(q.shape[2], tile.queries):
        q_tile = at_least_single(q[:, :, rows]) * scale
        grad_tile = gradient[:, :, rows].to(wide)
        inner = (grad_tile * out[:, :, rows]).sum(3, keepdim=True)
        if gradient_logsumexp is not None:
            inner = inner - gradient_logsumexp[:, :, rows].unsqueeze(3)
        base = logsumexp[:, :, rows].unsqueeze(3)
        base = base.masked_fill(base == -math.inf, math.inf)
        grad_q_tile = torch.zeros_like(q_tile)
        for keys in _runs(k.shape[2], tile.keys):
            weights = _scores(q_tile, k, bias, key_mask, rows, keys).sub_(base).exp_()
            grad_scores = grad_tile @ v[:, :, keys].to(wide).transpose(2, 3)
            if dropout is None:
                grad_v[:, :, keys] += weights.transpose(2, 3) @ grad_tile
            else:
                keep = dropout.keep(rows, keys, wide)
                grad_scores *= keep
                grad_v[:, :, keys] += (weights * keep).transpose(2, 3) @ grad_tile
            grad_scores.sub_(inner).mul_(weights)
            grad_q_tile += grad_scores @ k[:, :, keys].to(wide)
            grad_k[:, :, keys] += grad_scores.transpose(2, 3) @ q_tile
            if bias_gradient is not None:
                seen = bias_gradient[:, :, _clip(bias_gradient, 2, rows), _clip(bias_gradient, 3, keys)]
                seen += grad_scores.sum_to_size(seen.shape)
            del weights, grad_scores  # before the next tile is made
        grad_q[:, :, rows] = grad_q_tile * scale
    return grad_q, grad_k, grad_v
