"""The bytes that a method needs, and the tile that fits a budget."""

import math
import re

import torch
from torch import Tensor

from attn3d.attention.tiles import Tile

MemoryBudget = int | str | None

_UNITS = {
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}

# The scores of a tile without a budget: large enough for matrix products to run at full speed.
TILE_BYTES = 4 * 2**20


def read_bytes(argument: str, value: MemoryBudget) -> int | None:
    """A number of bytes from a number, ``"2GiB"`` or None.

    Raises:
        TypeError: when it is none of these.
        ValueError: when it is a text that gives no bytes, or not positive.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if not match or match[2].upper() not in _UNITS:
            raise ValueError(f'`{argument}` must be bytes, such as "512MiB" or "2GiB", got {value!r}')
        value = int(float(match[1]) * _UNITS[match[2].upper()])
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'`{argument}` must be a number of bytes, a text such as "2GiB", or None, got {value!r}')
    if value < 1:
        raise ValueError(f"`{argument}` must be positive, got {value}")
    return value


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def parallel_parts(sequences: int) -> int:
    """Into how many parts one of so many sequences is cut to keep all cores busy."""
    return max(1, min(8, torch.get_num_threads() // max(1, sequences)))


def room_for_scores(q: Tensor, k: Tensor, v: Tensor, budget: MemoryBudget, dropout: bool) -> int:
    """The bytes that a tile of scores may have within the budget."""
    limit = read_bytes("memory_budget", budget)
    if limit is None:
        return TILE_BYTES
    training = needs_gradient(q, k, v)
    left = limit - chunked_bytes(q, k, v, Tile(0, 0), training, dropout)
    return max(4, min(TILE_BYTES, left // tile_copies(training, dropout)))


def tile_within(room: int, sequences: int, queries: int, keys: int) -> Tile:
    """A tile of at most ``room`` bytes in single precision for each of its copies; at least one pair."""
    pairs = max(1, room // (4 * max(1, sequences)))
    rows = min(queries, max(1, math.isqrt(pairs) // 2))
    columns = min(keys, max(1, pairs // rows))
    return Tile(min(queries, max(1, pairs // columns)), columns)


def tile_copies(training: bool, dropout: bool) -> int:
    """How many tensors of the size of a tile in single precision are alive at once."""
    return (2 if training else 1) + (8 if dropout else 0)


def chunked_bytes(q: Tensor, k: Tensor, v: Tensor, tile: Tile, training: bool, dropout: bool) -> int:
    """The bytes beyond q, k and v that the method "chunked" takes with a tile."""
    sequences = q.shape[0] * q.shape[1]
    wide = max(4, q.element_size())
    output = sequences * q.shape[2] * (v.shape[3] * q.element_size() + wide)
    gradients = (q.numel() + k.numel() + v.numel()) * wide if training else 0
    rows = sequences * tile.queries * (q.shape[3] + 2 * v.shape[3]) * wide
    return output + gradients + rows + sequences * tile.queries * tile.keys * wide * tile_copies(training, dropout)


def fused_bytes(q: Tensor, k: Tensor, v: Tensor, training: bool) -> int:
    """The bytes beyond q, k and v that PyTorch's kernel takes."""
    sequences = q.shape[0] * q.shape[1]
    width = max(q.shape[3], v.shape[3]) * q.element_size()
    queries, keys = sequences * q.shape[2] * width, sequences * k.shape[2] * width
    output = queries + 4 * sequences * q.shape[2]
    if not training:
        return output
    parts = parallel_parts(sequences)
    return output + queries * (parts + (parts > 1)) + 2 * keys * (1 + (parts > 1))


def within_budget(methods: list[str], q: Tensor, k: Tensor, v: Tensor, budget: MemoryBudget, dropout: float) -> str:
    """The first of ``methods``, "fused" or "chunked", that fits the budget.

    Raises:
        ValueError: when none does, with the bytes that would do.
    """
    limit = read_bytes("memory_budget", budget)
    if limit is None:
        return methods[0]
    training = needs_gradient(q, k, v)
    needed = {}
    for method in methods:
        if method == "fused":
            needed[method] = fused_bytes(q, k, v, training)
        else:
            needed[method] = chunked_bytes(q, k, v, Tile(1, min(64, k.shape[2])), training, dropout > 0.0)
        if needed[method] <= limit:
            return method
    raise over_budget(limit, min(needed.values()), " or ".join(map(repr, methods)))


def over_budget(limit: int, needed: int, what: str) -> ValueError:
    """The error of a budget that cannot be met."""
    return ValueError(
        f"`memory_budget` of {limit} bytes cannot be met by {what}: at least {needed} are needed, for the output and,"
        " in training, the gradients, whatever the scope; with PooledKeys the gradients of keys are smaller, and"
        " `attn3d plan` lists what every scope takes"
    )
