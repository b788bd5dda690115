"""Numbers of bytes, and the tiles of scores that so many bytes hold."""

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

MOST_PARTS = 8  # into which a sequence is cut


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
    return max(1, min(MOST_PARTS, torch.get_num_threads() // max(1, sequences)))


def tile_within(room: int, sequences: int, queries: int, keys: int) -> Tile:
    """A tile of at most ``room`` bytes in single precision for each of its copies; at least one pair."""
    pairs = max(1, room // (4 * max(1, sequences)))
    rows = min(queries, max(1, math.isqrt(pairs) // 2))
    columns = min(keys, max(1, pairs // rows))
    return Tile(min(queries, max(1, pairs // columns)), columns)


def tile_copies(training: bool, dropout: bool) -> int:
    """How many tensors of the size of a tile in single precision are alive at once."""
    return (2 if training else 1) + (6 if dropout else 0)
