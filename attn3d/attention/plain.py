"""Attention in plain operators of PyTorch, which TorchScript reads and traces and ONNX exports keep.

The same functions serve the method "fused": PyTorch's kernel, on inputs that it accepts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from attn3d.attention.cells import (
    all_cells,
    axis_adds,
    axis_cells,
    key_features,
    pair_bias,
    query_features,
    token_index,
)
from attn3d.capture import at_least_single, no_autocast

LARGEST_CUDA_GRID = 65_535  # what the CUDA kernels take of batch or heads


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """PyTorch's kernel on inputs with last stride 1 and equal head dimensions, padded with zeros where need be.

    A channel-first view, or values of another width than the keys, would silently be served by the form that
    builds N x M.
    """
    width = v.shape[-1]
    q, k, v = equal_widths(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)[..., :width]


def equal_widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three with last stride 1 and one head dimension, zeros behind the narrower."""
    common = max(q.shape[-1], v.shape[-1])
    if q.is_cuda:
        common = (common + 7) // 8 * 8  # what the CUDA kernels ask for
    return _widen(q, common), _widen(k, common), _widen(v, common)


def _widen(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return functional.pad(x, [0, width - x.shape[-1]])
    # Not `contiguous`, which leaves the stride of an axis of size 1 as it is.
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def plain_cells(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: list[Tensor],
    bias: Tensor | None,
    shape: list[int],
    scope: list[str],
    size: list[int],
    dilation: list[int],
    shift: bool,
    scale: float,
    dropout: float,
    largest_grid: int = LARGEST_CUDA_GRID,
) -> Tensor:
    """Attention within cells, all of them gathered at once; arguments as `attn3d.attention.cells`.

    Args:
        q: (B, H, N, d), as k and v.
        k: see q.
        v: see q.
        tables: the position bias of every axis, (H, 2 size - 1), or no tables.
        bias: of the pairs of a cell, (1, H, w_q, w_k), or None.
        shape: S.
        scope: the kind of every axis.
        size: along every axis.
        dilation: along every axis.
        shift: whether windows are shifted.
        scale: of the products.
        dropout: probability of dropping a weight.
        largest_grid: of cells times heads in one call of the kernel.
    """
    dtype = q.dtype
    if dtype == torch.float16:  # which has no room for `MASKED`
        q, k, v = at_least_single(q), at_least_single(k), at_least_single(v)
    if bias is not None:
        bias = bias.to(q.dtype)
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    biases: list[Tensor] = []
    adds: list[bool] = []
    for axis in range(len(shape)):
        of_queries, of_keys, distance, seen = axis_cells(scope[axis], size[axis], dilation[axis], shift, shape[axis])
        queries.append(of_queries.to(q.device))
        keys.append(of_keys.to(q.device))
        distance, seen = distance.to(q.device), seen.to(q.device)
        if len(tables) > 0:
            biases.append(pair_bias(distance, seen, tables[axis]).to(q.dtype))
            adds.append(True)
        else:
            biases.append(pair_bias(distance, seen, None).to(q.dtype))
            adds.append(axis_adds(scope[axis], size[axis], shift, shape[axis]))
    places = all_cells([positions.shape[0] for positions in queries]).to(q.device)
    query_index = token_index(queries, shape, places)
    key_index = token_index(keys, shape, places)
    batch, heads = q.shape[0], q.shape[1]
    q_cells, k_cells, v_cells = _gather(q, query_index), _gather(k, key_index), _gather(v, key_index)
    if any(adds):
        # Features are not to be scaled: the queries are, before, and the product is not.
        of_queries = query_features([positions.shape[1] for positions in queries], adds, biases[0])
        q_cells = torch.cat([q_cells * scale, of_queries.expand(q_cells.shape[0], q_cells.shape[1], -1, -1)], 3)
        of_keys = key_features(biases, adds, places)  # (G, H or 1, w_k, F)
        of_keys = of_keys.unsqueeze(0).expand(batch, -1, heads, -1, -1).flatten(0, 1)
        k_cells = torch.cat([k_cells, of_keys], 3)
        scale = 1.0
    limit = max(1, largest_grid // heads)
    if q_cells.shape[0] > limit:
        parts: list[Tensor] = []
        for start in range(0, q_cells.shape[0], limit):
            run = min(limit, q_cells.shape[0] - start)
            q_run, k_run = q_cells.narrow(0, start, run), k_cells.narrow(0, start, run)
            parts.append(plain_attention(q_run, k_run, v_cells.narrow(0, start, run), scale, dropout, bias))
        out = torch.cat(parts)
    else:
        out = plain_attention(q_cells, k_cells, v_cells, scale, dropout, bias)
    # (B G, H, w, d) -> (B, H, G w, d), then every token from where it was a query
    out = out.unflatten(0, [batch, places.shape[0]]).transpose(1, 2).flatten(2, 3)
    tokens = query_index.flatten()
    place = torch.zeros([q.shape[2] + 1], dtype=torch.long, device=q.device)
    place = place.scatter(0, tokens.masked_fill(tokens < 0, q.shape[2]), torch.arange(tokens.shape[0], device=q.device))
    return out.index_select(2, place[:-1]).to(dtype)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, N, d) at the tokens (G, w) as (B G, H, w, d); in place of an absent token, the first."""
    taken = x.index_select(2, index.clamp(min=0).flatten())
    return taken.unflatten(2, [index.shape[0], index.shape[1]]).transpose(1, 2).flatten(0, 1)


def plain_axial(q: Tensor, k: Tensor, v: Tensor, shape: list[int], scale: float, dropout: float) -> Tensor:
    """Attention along the lines through every voxel, in one softmax over the scores of all of them."""
    axes = len(shape)
    dtype = q.dtype
    q = (at_least_single(q) * scale).unflatten(2, shape)
    k = at_least_single(k).unflatten(2, shape)
    v = at_least_single(v).unflatten(2, shape)
    scores: list[Tensor] = []
    for axis in range(axes):
        line = q.movedim(2 + axis, -2) @ k.movedim(2 + axis, -2).transpose(-2, -1)
        if axis > 0:  # the query itself is on every line, and counts once
            itself = torch.eye(shape[axis], dtype=torch.bool, device=q.device)
            line = line.masked_fill(itself, float("-inf"))
        scores.append(line.movedim(-2, 2 + axis))
    weights = functional.dropout(torch.cat(scores, -1).softmax(-1), dropout)
    out = torch.zeros_like(v)
    start = 0
    for axis in range(axes):
        line = weights.narrow(-1, start, shape[axis]).movedim(2 + axis, -2)
        out = out + (line @ v.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
        start += shape[axis]
    return out.flatten(2, 1 + axes).to(dtype)


def pool_tokens(x: Tensor, shape: list[int], stride: list[int]) -> Tensor:
    """The means of cells of tokens, (B, H, N, d) -> (B, H, M, d); a cell at the far end has what is left."""
    if not torch.jit.is_scripting():
        with no_autocast(x):
            return _pool_tokens(x, shape, stride)
    return _pool_tokens(x, shape, stride)


def _pool_tokens(x: Tensor, shape: list[int], stride: list[int]) -> Tensor:
    x = x.unflatten(2, shape)
    for axis in range(len(shape)):
        cell = torch.div(torch.arange(shape[axis], device=x.device), stride[axis], rounding_mode="floor")
        cells = torch.arange((shape[axis] + stride[axis] - 1) // stride[axis], device=x.device).unsqueeze(1)
        members = (cell == cells).to(x.dtype)  # (cells, extent): a product needs no padding and no case of its own
        behind = x.shape[3 + axis :]
        x = (members @ x.flatten(3 + axis)) / members.sum(1, keepdim=True)
        x = x.unflatten(-1, behind)
    return x.flatten(2, 1 + len(shape))


def pooled_shape(shape: list[int], stride: list[int]) -> list[int]:
    """How many cells `pool_tokens` makes along every axis."""
    return [-(-extent // step) for extent, step in zip(shape, stride, strict=True)]
