"""Groups: sets of queries and keys that see each other. Groups of equal size are computed in one batch.

A pattern lists the positions of every group along each axis. A group of the volume is the product of one group per
axis. A window that is cut by a border or a shift is then a smaller window and needs neither padding nor a mask.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = Any  # np.ndarray, or Tensor during a capture


class AxisGroups(NamedTuple):
    """The groups along one axis of S positions.

    Attributes:
        queries: positions, (G, w_q). Positions outside 0 to S - 1 are ignored.
        keys: positions, (G, w_k), likewise.
        seen: which query sees which key, booleans (G or 1, w_q, w_k). None: every query sees every key.
        step: the distance between neighbours, which is the unit of a position bias.
    """

    queries: Array
    keys: Array
    seen: Array | None = None
    step: Any = 1


class Groups(NamedTuple):
    """A batch of identical groups of a volume: equally many queries and keys, at the same relative positions.

    The number of groups G is the product of G_a over the axes; w_q and w_k are products likewise.

    Attributes:
        shape: S of the volume.
        size: w_q and w_k.
        queries: positions along every axis, (G_a, w_qa).
        keys: positions along every axis, (G_a, w_ka).
        seen: which query sees which key, (w_q, w_k), the same for all groups. None: every query sees every key.
        distances: from query to key along every axis, in steps of the pattern, (w_qa, w_ka).
        again: whether the queries are in earlier groups too; the parts of their softmax are then merged.
    """

    shape: tuple[int, ...]
    size: tuple[int, int]
    queries: list[np.ndarray]
    keys: list[np.ndarray]
    seen: np.ndarray | None
    distances: list[np.ndarray]
    again: bool

    @property
    def partition(self) -> bool:
        """Whether the keys of each group are its queries, so that groups do not share keys."""
        return all(map(np.array_equal, self.queries, self.keys))

    def runs(self, tokens: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the row indices of g groups at a time, g >= 1: queries (g, w_q) and keys (g, w_k).

        Args:
            tokens: the largest total number of queries and keys in g groups.
            rows: the rows that are indexed, one for every token of a batch, (B N, ..).
        """
        count = max(1, tokens // sum(self.size))
        batch = len(rows) // math.prod(self.shape)
        grid = (batch, *(len(positions) for positions in self.queries))  # the groups of all volumes
        total = math.prod(grid)
        for start in range(0, total, count):
            volume, *indices = np.unravel_index(np.arange(start, min(start + count, total)), grid)
            queries = keys = volume[:, None]
            for axis, (extent, index) in enumerate(zip(self.shape, indices, strict=True)):
                along_queries = self.queries[axis][index][:, None]
                along_keys = self.keys[axis][index][:, None]
                queries = (queries[:, :, None] * extent + along_queries).reshape(len(index), -1)
                keys = (keys[:, :, None] * extent + along_keys).reshape(len(index), -1)
            yield torch.tensor(queries, device=rows.device), torch.tensor(keys, device=rows.device)


def outer(combine: Callable[[Array, Array], Array], arrays: Iterable[Array], shared: int = 0) -> Array:
    """Combines all entries of the arrays: (m, n) and (p, q) give (m p, n q), with the last array varying fastest.

    Args:
        combine: an elementwise function of two arrays that broadcasts them.
        arrays: arrays with the same number of axes.
        shared: the number of leading axes that they have in common; these are not combined.
    """

    def pairs(x: Array, y: Array) -> Array:
        every, own = slice(None), x.ndim - shared
        combined = combine(
            x[(every,) * shared + (every, None) * own],
            y[(every,) * shared + (None, every) * own],
        )
        joined = [x_size * y_size for x_size, y_size in zip(x.shape[shared:], y.shape[shared:], strict=True)]
        return combined.reshape([*combined.shape[:shared], *joined])

    return functools.reduce(pairs, arrays)


def flat_indices(positions: Sequence[Array], sizes: Sequence[Any], shared: int = 0) -> Array:
    """Returns the flat indices of all combinations of positions along axes of the given sizes, see `outer`."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return outer(operator.add, [along * stride for along, stride in zip(positions, strides, strict=True)], shared)


class _Alike(NamedTuple):
    """Identical groups along one axis: queries (G, w_q), keys (G, w_k), and for every pair whether it is seen and its
    distance in steps, both (w_q, w_k)."""

    queries: np.ndarray
    keys: np.ndarray
    seen: np.ndarray
    distance: np.ndarray


def alike(groups: AxisGroups, extent: int) -> list[_Alike]:
    """Returns the groups of an axis without positions outside the volume, batched where they are identical."""
    batches: dict[Any, list[Any]] = {}
    for number, (queries, keys) in enumerate(zip(groups.queries, groups.keys, strict=True)):
        queries_inside = (queries >= 0) & (queries < extent)
        keys_inside = (keys >= 0) & (keys < extent)
        seen = np.ones((len(queries), len(keys)), bool)
        if groups.seen is not None:
            seen = groups.seen[number if len(groups.seen) > 1 else 0]
        seen = seen[queries_inside][:, keys_inside]
        used = seen.any(0)
        queries, keys, seen = queries[queries_inside], keys[keys_inside][used], seen[:, used]
        distance = (keys - queries[:, None]) // groups.step
        if seen.size:
            batch = batches.setdefault((distance.shape, distance.tobytes(), seen.tobytes()), [[], [], seen, distance])
            batch[0].append(queries)
            batch[1].append(keys)
    return [_Alike(np.stack(queries), np.stack(keys), *pairs) for queries, keys, *pairs in batches.values()]


def relation(groups: AxisGroups, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which position of an axis sees which, and their distance in steps, both (S, S)."""
    seen = np.zeros((extent, extent), bool)
    distance = np.zeros((extent, extent), int)
    for batch in alike(groups, extent):
        for queries, keys in zip(batch.queries, batch.keys, strict=True):
            seen[np.ix_(queries, keys)] = batch.seen
            distance[np.ix_(queries, keys)] = batch.distance
    return seen, distance
