"""A scope as a bias over pairs of tokens: N x N for the method "reference", rows of it for attention maps."""

import torch
from torch import Tensor

from attn3d.attention.cells import MASKED, axis_cells, pair_bias


def dense_bias(
    chosen: Tensor,
    shape: list[int],
    kind: str,
    size: list[int],
    dilation: list[int],
    shift: bool,
    tables: list[Tensor] | None,
    joint: Tensor | None,
) -> Tensor:
    """What is added to the scores of some queries against all keys, (1, H or 1, Q, N).

    Args:
        chosen: the queries, (Q,).
        shape: S.
        kind: "window", "grid" or "neighborhood".
        size: along every axis.
        dilation: along every axis.
        shift: whether windows are shifted.
        tables: the position bias of every axis, (H, 2 size - 1), or None.
        joint: the position bias of every offset, (H, product of 2 size - 1), or None.
    """
    total = torch.zeros(1, len(chosen), 1, device=chosen.device)
    offset = torch.zeros(len(chosen), 1, dtype=torch.long, device=chosen.device)
    for axis, position in enumerate(coordinates(chosen, shape)):
        queries, keys, distance, seen = axis_cells(kind, size[axis], dilation[axis], shift, shape[axis])
        bias = pair_bias(distance.to(chosen.device), seen.to(chosen.device), None if tables is None else tables[axis])
        # Absent positions are written to a row and a column behind the last, which are cut off.
        extent = shape[axis]
        row = queries.masked_fill(queries < 0, extent).unsqueeze(2).expand_as(distance)
        column = keys.masked_fill(keys < 0, extent).unsqueeze(1).expand_as(distance)
        here = bias.new_full((bias.shape[1], extent + 1, extent + 1), MASKED)
        here[:, row, column] = bias.transpose(0, 1)
        here = here[:, :extent, :extent]
        steps = torch.zeros(extent + 1, extent + 1, dtype=torch.long)
        steps[row, column] = distance
        steps = steps[:extent, :extent]
        total = (total.unsqueeze(3) + here[:, position].unsqueeze(2)).flatten(2)
        steps = steps.to(chosen.device)[position].clamp(1 - size[axis], size[axis] - 1) + size[axis] - 1
        offset = (offset.unsqueeze(2) * (2 * size[axis] - 1) + steps.unsqueeze(1)).flatten(1)
    if joint is not None:
        total = total + joint[:, offset]
    return total.unsqueeze(0)


def dense_axial(chosen: Tensor, shape: list[int]) -> Tensor:
    """0 for keys that differ from the query along at most one axis, else `MASKED`, (1, 1, Q, N)."""
    differing = torch.zeros(len(chosen), 1, dtype=torch.long, device=chosen.device)
    for position, extent in zip(coordinates(chosen, shape), shape, strict=True):
        here = position.unsqueeze(1) != torch.arange(extent, device=chosen.device)
        differing = (differing.unsqueeze(2) + here.unsqueeze(1)).flatten(1)
    return torch.where(differing <= 1, 0.0, MASKED)[None, None]


def coordinates(tokens: Tensor, shape: list[int]) -> list[Tensor]:
    """The position of tokens along every axis."""
    found = []
    for extent in reversed(shape):
        found.insert(0, tokens % extent)
        tokens = torch.div(tokens, extent, rounding_mode="floor")
    return found
