"""Groups: runs of queries and keys that see each other, those of equal size computed in one batch.

Along an axis, a pattern lists the positions of every group. A group of the volume is the product of one group of every
axis, so that a window that is cut by a border or by a shift is a smaller window, and needs neither padding nor a mask.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = Any  # np.ndarray, or Tensor in a capture


class AxisGroups(NamedTuple):
    """The groups along one axis of S positions.

    Attributes:
        queries: positions (G, w_q). Those outside of 0 to S - 1 stand for no voxel.
        keys: positions (G, w_k), likewise.
        seen: which query sees which key, (G or 1, w_q, w_k); None: every query sees every key.
        step: the distance between neighbours, in which a position bias counts.
    """

    queries: Array
    keys: Array
    seen: Array | None = None
    step: Any = 1


class Groups(NamedTuple):
    """Groups of a volume that are alike: equally many queries and keys, in the same places relative to each other.

    There are G of them, the product of G_a over the axes; w_q and w_k are products likewise.

    Attributes:
        shape: S of the volume.
        size: w_q and w_k.
        queries: positions along every axis, (G_a, w_qa).
        keys: positions along every axis, (G_a, w_ka).
        seen: which query sees which key, (w_q, w_k), in all groups alike; None: every query sees every key.
        distances: along every axis from query to key, in steps of the pattern, (w_qa, w_ka).
        again: whether the queries have been in groups before; the parts of their softmax are then merged.
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
        """Whether the keys of each group are its queries, so that no two groups have a key in common."""
        return all(map(np.array_equal, self.queries, self.keys))

    def runs(self, tokens: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The tokens of a few groups at a time, at least of one: queries (g, w_q) and keys (g, w_k).

        Args:
            tokens: the most queries and keys together that g groups may have.
            rows: a row for every token of a batch, (B N, ..), in which the tokens of the groups are numbered.
        """
        count, groups = max(1, tokens // sum(self.size)), (len(rows) // math.prod(self.shape), *map(len, self.queries))
        for start in range(0, math.prod(groups), count):
            volume, *numbers = np.unravel_index(np.arange(start, min(start + count, math.prod(groups))), groups)
            queries = keys = volume[:, None]
            for extent, number, of_queries, of_keys in zip(self.shape, numbers, self.queries, self.keys, strict=True):
                queries = (queries[:, :, None] * extent + of_queries[number][:, None]).reshape(len(number), -1)
                keys = (keys[:, :, None] * extent + of_keys[number][:, None]).reshape(len(number), -1)
            yield torch.tensor(queries, device=rows.device), torch.tensor(keys, device=rows.device)


def outer(combine: Callable[[Array, Array], Array], x: Array, y: Array, shared: int = 0) -> Array:
    """``combine`` of every entry of x with every entry of y: (m, n) and (p, q) to (m p, n q), y running faster.

    Args:
        combine: two arrays that broadcast to one.
        x: an array.
        y: an array with as many axes.
        shared: how many axes in front are common to both, and stay what they are.
    """
    every, own = slice(None), x.ndim - shared
    pairs = combine(
        x[(every,) * shared + (every, None) * own],
        y[(every,) * shared + (None, every) * own],
    )
    joined = [one * other for one, other in zip(x.shape[shared:], y.shape[shared:], strict=True)]
    return pairs.reshape([*pairs.shape[:shared], *joined])


class _Alike(NamedTuple):
    """Groups along one axis that are alike: queries (G, w_q), keys (G, w_k), and of every pair whether it is seen and
    its distance in steps, (w_q, w_k) both."""

    queries: np.ndarray
    keys: np.ndarray
    seen: np.ndarray
    distance: np.ndarray


def alike(groups: AxisGroups, extent: int) -> list[_Alike]:
    """The groups of an axis without the positions that stand for no voxel, those that are alike in one entry."""
    batches: dict[Any, list[Any]] = {}
    for number, (queries, keys) in enumerate(zip(groups.queries, groups.keys, strict=True)):
        here, there = (queries >= 0) & (queries < extent), (keys >= 0) & (keys < extent)
        seen = np.ones((here.sum(), there.sum()), bool)
        if groups.seen is not None:
            seen = groups.seen[number if len(groups.seen) > 1 else 0][here][:, there]
        queries, keys, seen = queries[here], keys[there][seen.any(0)], seen[:, seen.any(0)]
        distance = (keys - queries[:, None]) // groups.step
        if seen.size:
            batch = batches.setdefault((distance.shape, distance.tobytes(), seen.tobytes()), [[], [], seen, distance])
            batch[0].append(queries)
            batch[1].append(keys)
    return [_Alike(np.stack(queries), np.stack(keys), *pairs) for queries, keys, *pairs in batches.values()]


def relation(groups: AxisGroups, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """Which position of an axis sees which, and the distance from it in steps, (S, S) both."""
    seen = np.zeros((extent, extent), bool)
    distance = np.zeros((extent, extent), int)
    for batch in alike(groups, extent):
        for queries, keys in zip(batch.queries, batch.keys, strict=True):
            seen[np.ix_(queries, keys)] = batch.seen
            distance[np.ix_(queries, keys)] = batch.distance
    return seen, distance
