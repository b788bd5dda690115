"""A scope's cells: which tokens are compared with which, axis by axis, and their product.

Along an axis of size S a scope has G cells. Cell g has w_q query positions, w_k key positions and, for every
pair, what is added to their score: 0, `MASKED`, or a learnt position bias. A position that does not exist is
-1. A cell of the volume is a cell of every axis; its tokens are the product of their positions, and its pairs
add up what every axis adds. So no mask over pairs of tokens is ever needed: `pair_features` writes the sum as
a product of a few more head dimensions.

Plain functions of integers and tensors, which TorchScript can read.
"""

import torch
from torch import Tensor

from attn3d.capture import at_least_single

# What is added to the score of a pair that must not see each other: finite, so that it survives products with
# 0, and so large that single precision keeps nothing of the score beside it.
MASKED = -1e30

_TILE = 4  # queries along an axis that share a halo of neighbours


def axis_cells(scope: str, size: int, dilation: int, shift: bool, extent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells of one axis.

    Args:
        scope: "window", "grid", "neighborhood", or of the lines of "axial": "line" and "point".
        size: of the window, grid or neighbourhood.
        dilation: of the neighbourhood.
        shift: of the windows.
        extent: S.

    Returns:
        query positions (G, w_q); key positions (G, w_k); for every pair the distance from query to key in steps
        of the scope, and whether the query sees the key, both (G, w_q, w_k).
    """
    if scope == "window":
        width = min(size, extent)
        first = width // 2 - width if shift and extent > size else 0
        count = (extent - first + width - 1) // width
        queries = first + width * torch.arange(count).unsqueeze(1) + torch.arange(width)
        keys = queries
        distance = keys.unsqueeze(1) - queries.unsqueeze(2)
    elif scope == "grid":
        width = min(size, extent)
        step = (extent + size - 1) // size
        queries = torch.arange(step).unsqueeze(1) + step * torch.arange(width)
        keys = queries
        distance = torch.div(keys.unsqueeze(1) - queries.unsqueeze(2), step, rounding_mode="floor")
    elif scope == "neighborhood":
        return _neighborhood_cells(size, dilation, extent)
    elif scope == "point":
        queries = torch.arange(extent).unsqueeze(1)
        keys = queries
        distance = torch.zeros([extent, 1, 1], dtype=torch.long)
    else:  # "line": one cell
        queries = torch.arange(extent).unsqueeze(0)
        keys = queries
        distance = keys.unsqueeze(1) - queries.unsqueeze(2)
    absent = (keys < 0) | (keys >= extent)
    seen = (~absent).unsqueeze(1).expand(distance.shape)
    queries = queries.masked_fill((queries < 0) | (queries >= extent), -1)
    return queries, keys.masked_fill(absent, -1), distance, seen


def _neighborhood_cells(
    size: int, dilation: int, extent: int, tile: int = _TILE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles of queries with the halo of keys that they need, for every remainder of the dilation."""
    remainders = torch.arange(min(dilation, extent)).view(-1, 1, 1)
    lengths = torch.div(extent - remainders + dilation - 1, dilation, rounding_mode="floor")
    longest = (extent + dilation - 1) // dilation
    kernel = min(size, max(1, extent // dilation))
    tile = min(tile, longest)
    halo = min(tile + kernel - 1, longest)
    starts = tile * torch.arange((longest + tile - 1) // tile).view(1, -1, 1)
    queries = starts + torch.arange(tile)  # positions among those of the same remainder
    first = torch.minimum((starts - kernel // 2).clamp(min=0), (lengths - halo).clamp(min=0))
    keys = first + torch.arange(halo)
    lowest = torch.minimum((queries - kernel // 2).clamp(min=0), (lengths - kernel).clamp(min=0)).unsqueeze(3)
    others = keys.unsqueeze(2)
    seen = (others >= lowest) & (others < lowest + kernel) & (others < lengths.unsqueeze(3))
    seen = seen & (queries < lengths).unsqueeze(3)
    distance = others - queries.unsqueeze(3)
    absolute_queries = (remainders + dilation * queries).masked_fill(queries >= lengths, -1)
    absolute_keys = (remainders + dilation * keys).masked_fill(keys >= lengths, -1)
    return absolute_queries.flatten(0, 1), absolute_keys.flatten(0, 1), distance.flatten(0, 1), seen.flatten(0, 1)


def token_index(positions: list[Tensor], shape: list[int], chosen: Tensor) -> Tensor:
    """The tokens of cells, (G, w), w the product of the positions along every axis; -1 where one is absent.

    Args:
        positions: (G_a, w_a) of every axis.
        shape: S.
        chosen: the cells asked for by their place along every axis, (G, n).
    """
    index = torch.zeros([chosen.shape[0], 1], dtype=torch.long, device=chosen.device)
    for axis in range(len(shape)):
        here = positions[axis].index_select(0, chosen[:, axis]).unsqueeze(1)
        before = index.unsqueeze(2)
        index = torch.where((before < 0) | (here < 0), -1, before * shape[axis] + here).flatten(1)
    return index


def pair_bias(distance: Tensor, seen: Tensor, table: Tensor | None, masked: float = MASKED) -> Tensor:
    """What an axis adds to its pairs, (G_a, H or 1, w_q, w_k): the table's entry of their distance, or 0.

    Args:
        distance: of `axis_cells`.
        seen: of `axis_cells`.
        table: (H, 2 size - 1), the position bias from distance 1 - size to size - 1; or None.
        masked: what is added to a pair that must not see each other.

    Returns:
        in at least single precision: half has no room for `MASKED`.
    """
    if table is None:
        bias = torch.zeros(distance.shape, device=distance.device).unsqueeze(1)
    else:
        middle = table.shape[1] // 2
        bias = at_least_single(table)[:, (distance + middle).clamp(0, 2 * middle)].transpose(0, 1)
    return bias.masked_fill(~seen.unsqueeze(1), masked)


def joint_bias(table: Tensor, size: list[int], shape: list[int]) -> Tensor:
    """A position bias of its own for every offset in a window or grid, (1, H, w, w).

    Args:
        table: (H, product of 2 size - 1), by the offset along every axis, the last fastest.
        size: of the window or grid along every axis.
        shape: S, to which the window is clipped.
    """
    offset = torch.zeros([1, 1], dtype=torch.long)
    for axis in range(len(size)):
        width = min(size[axis], shape[axis])
        step = torch.arange(width)
        along = step.unsqueeze(0) - step.unsqueeze(1) + size[axis] - 1
        before = offset.unsqueeze(1).unsqueeze(3) * (2 * size[axis] - 1)
        offset = (before + along.unsqueeze(0).unsqueeze(2)).flatten(2).flatten(0, 1)
    return table[:, offset.to(table.device)].unsqueeze(0)


def query_features(widths: list[int], adds: list[bool], like: Tensor) -> Tensor:
    """Which position a query has along every axis that adds something: one-hot, (w_q, F).

    Args:
        widths: w_q of every axis.
        adds: whether an axis adds anything.
        like: a tensor of the wanted dtype and device.
    """
    features: list[Tensor] = []
    for axis in range(len(widths)):
        if adds[axis]:
            view = [1] * (len(widths) + 1)
            view[axis] = widths[axis]
            view[-1] = widths[axis]
            one_hot = torch.eye(widths[axis], dtype=like.dtype, device=like.device).view(view)
            features.append(one_hot.expand(widths + [widths[axis]]).flatten(0, len(widths) - 1))
    return torch.cat(features, -1)


def key_features(biases: list[Tensor], adds: list[bool], chosen: Tensor) -> Tensor:
    """What every axis adds to the score of a key, for each position that a query may have along that axis.

    The product of `query_features` and these is the sum of what the axes add to a pair.

    Args:
        biases: of `pair_bias`, (G_a, H or 1, w_q, w_k) of every axis.
        adds: whether an axis adds anything.
        chosen: the cells asked for by their place along every axis, (G, n).

    Returns:
        (G, H or 1, w_k, F).
    """
    keys = [bias.shape[3] for bias in biases]
    heads = max([bias.shape[1] for bias in biases])
    features: list[Tensor] = []
    for axis in range(len(biases)):
        if adds[axis]:
            bias = biases[axis].index_select(0, chosen[:, axis]).transpose(2, 3)
            view = [bias.shape[0], bias.shape[1]] + [1] * len(biases) + [bias.shape[3]]
            view[2 + axis] = keys[axis]
            bias = bias.reshape(view).expand([bias.shape[0], heads] + keys + [bias.shape[3]])
            features.append(bias.flatten(2, 1 + len(biases)))
    return torch.cat(features, -1)


def axis_adds(scope: str, size: int, shift: bool, extent: int) -> bool:
    """Whether an axis has pairs that must not see each other, among those that its cells bring together."""
    if scope == "window":
        return extent % min(size, extent) != 0 or (shift and extent > size)
    if scope == "grid":
        return extent % min(size, extent) != 0
    return scope == "neighborhood"


def all_cells(counts: list[int]) -> Tensor:
    """Every cell by its place along every axis, (G, n), in the order of `token_index`."""
    places = torch.zeros([1, 0], dtype=torch.long)
    for count in counts:
        here = torch.arange(count).view(1, count, 1).expand(places.shape[0], count, 1)
        before = places.unsqueeze(1).expand(places.shape[0], count, places.shape[1])
        places = torch.cat([before, here], 2).flatten(0, 1)
    return places
