"""Exact tiled attention: online softmax in forward, recomputation in backward (arXiv 2112.05682, 2205.14135).

A tile holds the scores of a run of queries and a run of keys; no larger matrix is built. Forward returns the output and
the log-sum-exp of every row, from which backward recomputes the tiles. All sums are in at least single precision.
"""

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from attn3d.capture import at_least_single, is_batched, without_autocast


class Tile(NamedTuple):
    """The number of queries and keys of a tile."""

    queries: int
    keys: int


def tile_of(tile_bytes: int, sequences: int, queries: int, keys: int) -> Tile:
    """Returns the tile whose scores, over all sequences, take at most ``tile_bytes`` in single precision.

    A tile has at least one query and one key.
    """
    pairs = max(1, tile_bytes // (4 * max(1, sequences)))
    rows = min(queries, max(1, math.isqrt(pairs) // 2))
    columns = min(keys, max(1, pairs // rows))
    return Tile(min(queries, max(1, pairs // columns)), columns)


class Dropout(NamedTuple):
    """Which weights are dropped: a hash of the seed and the indices of row and key, independent of the tiles.

    Attributes:
        probability: probability of dropping a weight.
        seed: integer tensor, ().
        rows: indices of the rows, (B, H, N).
        keys: indices of the keys, broadcastable to (B, H, M).
    """

    probability: float
    seed: Tensor
    rows: Tensor
    keys: Tensor

    def factor(self, rows: slice, keys: slice, dtype: torch.dtype) -> Tensor:
        """Returns for a tile 1 / (1 - probability) where a weight is kept and 0 where it is dropped."""
        row = _hash(self.rows[:, :, rows] + self.seed)
        mixed = _hash(row.unsqueeze(3) + self.keys[:, :, None, keys] * 0x9E3779B1)
        return (mixed >= self.probability * 2.0**32).to(dtype) / (1.0 - self.probability)


def dropout_of(q: Tensor, k: Tensor, probability: float, seed: Tensor | None) -> Dropout | None:
    """Returns which weights of all queries and keys are dropped, or None without a seed."""
    if seed is None:
        return None
    keys = torch.arange(k.shape[2], device=k.device).view(1, 1, -1)
    rows = torch.arange(q[..., 0].numel(), device=q.device).view(q.shape[:3])
    return Dropout(probability, seed, rows, keys)


def _hash(x: Tensor) -> Tensor:
    """Mixes the lower 32 bits of integers."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


class Softmax(NamedTuple):
    """The softmax of N queries over M keys, softmax(scale q k^T + bias).

    Attributes:
        scale: factor of the products q k^T.
        bias: broadcastable to (B, H, N, M).
        key_mask: (B, M), true where a key may be seen.
        dropout: which weights are dropped.
    """

    scale: float
    bias: Tensor | None = None
    key_mask: Tensor | None = None
    dropout: Dropout | None = None

    def scores(self, q: Tensor, k: Tensor, rows: slice, keys: slice) -> Tensor:
        """Returns the scores of a tile from its scaled queries and its keys."""
        scores = q @ k.transpose(2, 3)
        if self.bias is not None:
            scores += self.bias[:, :, _part(self.bias, 2, rows), _part(self.bias, 3, keys)]
        if self.key_mask is not None:
            scores.masked_fill_(~self.key_mask[:, None, None, keys], -math.inf)
        return scores


def _part(bias: Tensor, axis: int, run: slice) -> slice:
    """Returns the slice of a bias for a tile: everything along an axis that broadcasts."""
    return slice(None) if bias.shape[axis] == 1 else run


def _runs(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@without_autocast
def forward(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax, tile: Tile) -> tuple[Tensor, Tensor]:
    """Computes softmax(scale q k^T + bias) v and the log-sum-exp of the rows.

    A row without visible keys has an output of 0 and a log-sum-exp of -inf.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d_v).
        softmax: scale, bias, key mask and dropout.
        tile: size of the tiles.

    Returns:
        (B, H, N, d_v) in the dtype of q, and (B, H, N) in at least single precision.
    """
    out = q.new_empty([*q.shape[:3], v.shape[3]])
    logsumexp = logsumexp_like(q)
    for rows in _runs(q.shape[2], tile.queries):
        q_tile = at_least_single(q[:, :, rows]) * softmax.scale
        largest: Any = None
        sums: Any = None
        total: Any = None
        for keys in _runs(k.shape[2], tile.keys):
            weights = softmax.scores(q_tile, at_least_single(k[:, :, keys]), rows, keys)
            top = weights.amax(3, keepdim=True)
            if largest is not None:
                top = torch.maximum(top, largest)
            base = top.masked_fill(top == -math.inf, 0.0)
            weights.sub_(base).exp_()
            row_sums = weights.sum(3, keepdim=True)
            if softmax.dropout is not None:
                weights *= softmax.dropout.factor(rows, keys, weights.dtype)
            part = weights @ at_least_single(v[:, :, keys])
            if largest is not None:
                shrink = torch.exp(largest - base)
                row_sums = row_sums.addcmul_(sums, shrink)
                part = part.addcmul_(total, shrink)
            largest, sums, total = top, row_sums, part
            del weights, part  # freed before the next tile is allocated
        out[:, :, rows] = total.div_(sums.masked_fill(sums == 0, 1.0))
        logsumexp[:, :, rows] = (largest + sums.log()).squeeze(3)
    return out, logsumexp


@without_autocast
def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    softmax: Softmax,
    tile: Tile,
    grad_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k and v, in at least single precision, from that of the output, (B, H, N, d_v).

    ``out`` and ``logsumexp`` are the results of `forward`. If they are those of a softmax over more keys than these, so
    are the gradients. The gradient of the bias is added to ``grad_bias``, which is in at least single precision.
    """
    wide = logsumexp.dtype
    inner = (grad_out.to(wide) * out).sum(3, keepdim=True)
    base = logsumexp.unsqueeze(3)
    base = base.masked_fill(base == -math.inf, math.inf)  # the weights of a row without keys are exp(-inf) = 0

    def tile_of_gradients(rows: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor]:
        # Each tile is used in two products, and each product would make it contiguous.
        grad_tile = at_least_single(grad_out[:, :, rows]).contiguous()
        k_tile = at_least_single(k[:, :, keys]).contiguous()
        v_tile = at_least_single(v[:, :, keys]).contiguous()
        q_tile = (at_least_single(q[:, :, rows]) * softmax.scale).contiguous()
        weights = softmax.scores(q_tile, k_tile, rows, keys).sub_(base[:, :, rows]).exp_()
        grad_scores = grad_tile @ v_tile.transpose(2, 3)
        kept = weights
        if softmax.dropout is not None:
            factor = softmax.dropout.factor(rows, keys, wide)
            grad_scores *= factor
            kept = weights * factor
        grad_v_tile = kept.transpose(2, 3) @ grad_tile
        grad_scores.sub_(inner[:, :, rows]).mul_(weights)
        if grad_bias is not None:
            grad_bias_tile = grad_bias[:, :, _part(grad_bias, 2, rows), _part(grad_bias, 3, keys)]
            grad_bias_tile += grad_scores.sum_to_size(grad_bias_tile.shape)
        return (grad_scores @ k_tile).mul_(softmax.scale), grad_scores.transpose(2, 3) @ q_tile, grad_v_tile

    row_runs, key_runs = _runs(q.shape[2], tile.queries), _runs(k.shape[2], tile.keys)
    if len(row_runs) == len(key_runs) == 1:
        return tile_of_gradients(row_runs[0], key_runs[0])
    grad_q, grad_k, grad_v = (x.new_zeros(list(x.shape), dtype=wide) for x in (q, k, v))
    for rows in row_runs:
        for keys in key_runs:
            part_q, part_k, part_v = tile_of_gradients(rows, keys)
            grad_q[:, :, rows] += part_q
            grad_k[:, :, keys] += part_k
            grad_v[:, :, keys] += part_v
    return grad_q, grad_k, grad_v


def logsumexp_like(q: Tensor) -> Tensor:
    """Returns an uninitialized (B, H, N) in at least single precision."""
    return q.new_empty(list(q.shape[:3]), dtype=torch.promote_types(q.dtype, torch.float32))


def merge(before: tuple[Tensor, Tensor], part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Merges two parts of a softmax over disjoint keys, each an output (.., d) and its log-sum-exp (.., 1).

    A query without keys in both parts, with log-sum-exp -inf in both, has an output of 0.
    """
    total = torch.logaddexp(before[1], part[1])
    base = total.masked_fill(total == -math.inf, 0.0)
    share, share_of_part = torch.exp(before[1] - base), torch.exp(part[1] - base)
    return before[0] * share + part[0] * share_of_part, total


def check_gradient(grad_out: Tensor) -> None:
    """Raises an error for second derivatives and for several gradients at once, and names the backend with both."""
    if torch.is_grad_enabled():
        refuse_second_derivative()
    if is_batched(grad_out):
        raise RuntimeError("attention with this backend has no batched gradients; backend='math' has them")


def refuse_second_derivative(*_: Any) -> NoReturn:
    """Raises an error that names the backend with a second derivative."""
    raise RuntimeError("attention with this backend has no second derivative; backend='math' has one")


def refuse_forward_mode() -> NoReturn:
    """Raises an error that names the backend with a derivative in forward mode."""
    raise RuntimeError("attention with this backend has no derivative in forward mode; backend='math' has one")
