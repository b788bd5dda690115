"""The context-parallel forms of modules. Given a shard of a volume, they return that shard of the whole result."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from attn3d.attention import Pattern
from attn3d.attention.groups import AxisGroups, relation
from attn3d.distributed.collectives import Span, all_reduce, fetch, shard_borders, sum_of
from attn3d.distributed.ring import attend_ring

_OUTSIDE = -1  # a position outside every volume


class ContextParallel(nn.Module):
    """Mixin for modules whose input is a shard of a volume.

    Parameters, buffers and hooks of the module are unchanged. A process group cannot be copied or pickled, so a copy,
    deep or pickled, has the plain class and works on whole volumes.

    Attributes:
        plain: the original class of the module.
        process_group: the ranks, each with one shard, in rank order.
        rotate: how a rank gets the keys of other ranks if its queries see all keys: "all_gather" or "ring".
    """

    plain: ClassVar[type[nn.Module]]
    process_group: dist.ProcessGroup
    rotate: str
    pattern: Pattern  # if the plain class has a pattern

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("process_group", "rotate")}
        return object.__new__, (self.plain,), state

    def rows(self, *_: Any) -> Tensor:
        """Raises an error: a row of weights is over the voxels of all ranks."""
        raise ValueError("rows of weights are not available for a shard: use a copy, which works on whole volumes")

    def with_pattern(self, pattern: Pattern) -> nn.Module:
        """Returns the plain form with another pattern and the same parameters."""
        plain: Any = copy.copy(self)
        plain.pattern = pattern
        return plain


@functools.cache
def _parallel_class(form: type[nn.Module], plain: type[nn.Module]) -> Any:
    return type(f"ContextParallel{plain.__name__}", (form, plain), {"plain": plain, "__module__": __name__})


def make_parallel(
    module: nn.Module, form: type[ContextParallel], process_group: dist.ProcessGroup, rotate: str
) -> None:
    """Changes a module to its context-parallel form, in place."""
    changed: Any = module
    changed.__class__ = _parallel_class(form, type(module))  # type: ignore[arg-type]  # classes are hashable
    changed.process_group, changed.rotate = process_group, rotate


def make_plain(module: Any) -> None:
    """Changes a module back to its plain class, in place."""
    del module.process_group, module.rotate
    module.__class__ = module.plain


class ShardedAttention(ContextParallel):
    """`VolumeAttention` from the queries of a shard to keys on all ranks."""

    dropout: float
    scale: float | None
    memory_budget: int | None
    features: Any

    @torch.compiler.disable
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shape: list[int],
        key_mask: Tensor | None = None,
        registers: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attends like `VolumeAttention`; ``shape`` is S of the shard."""
        refuse_mask(key_mask)
        if self.dropout > 0.0 and self.training:
            raise ValueError("`dropout` must be 0 in training over shards: set it to 0, or call `eval`")
        k, v = k.to(q.dtype), v.to(q.dtype)
        borders = shard_borders(q, shape, self.process_group)
        if self.pattern.local:
            return self._attend_rows(q, k, v, shape, borders)
        if self.rotate == "all_gather":
            return attend_all(self, q, k, v, shape, borders, registers=registers)
        k, v, blocks, plane = pooled_keys(self, k, v, shape, borders)
        if self.features is not None:
            rank = self.process_group.rank()
            spans = [(ends[rank], ends[rank + 1]) for ends in (borders, blocks)]
            q, k = self.features(q, k, Gathered(self.pattern, borders[-1], *spans), shape)
        largest = math.prod(shape[1:]) * max(end - begin for begin, end in pairwise(borders))
        counts = [plane * (end - begin) for begin, end in pairwise(blocks)]
        scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if self.scale is None else self.scale
        return attend_ring(q, k, v, largest, counts, scale, self.memory_budget, self.process_group)

    def _attend_rows(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], borders: list[int]) -> Tensor:
        """Attends to the rows of keys that the queries of the shard see."""
        rank, plane = self.process_group.rank(), math.prod(shape[1:])
        whole = (borders[-1], *shape[1:])
        wanted = [rows_seen(self.pattern, span, whole) for span in pairwise(borders)]
        k, v = fetch(k, v, borders, wanted, plane, self.process_group)
        first, last = wanted[rank]
        begin, end = borders[rank], borders[rank + 1]
        attention = self.with_pattern(Rows(self.pattern, borders[-1], first, (begin, end)))
        q = functional.pad(q, (0, 0, plane * (begin - first), plane * (last - end)))
        out = attention.forward(q, k, v, [last - first, *shape[1:]])
        return out[:, :, plane * (begin - first) : plane * (end - first)]


class ShardedPairwise(ContextParallel):
    """`DotProduct` and `Concatenation` from the queries of a shard to the keys of all ranks."""

    @torch.compiler.disable
    def forward(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], key_mask: Tensor | None = None) -> Tensor:
        """Computes the plain form; ``shape`` is S of the shard."""
        refuse_mask(key_mask)
        return attend_all(self, q, k, v, shape, shard_borders(q, shape, self.process_group))


class ShardedChannels(ContextParallel):
    """`ChannelwiseAttention` with sums over the whole volume."""

    def sum_over_voxels(self, sums: Tensor) -> Tensor:
        """Returns the sum over all ranks."""
        return all_reduce(sums, self.process_group)

    def voxels(self, tokens: Tensor) -> int:
        """Returns the number of voxels of all ranks."""
        return sum_of(tokens.shape[2], tokens, self.process_group)


def pooled_keys(
    module: ContextParallel, k: Tensor, v: Tensor, shape: list[int], borders: list[int]
) -> tuple[Tensor, Tensor, list[int], int]:
    """Pools the keys and values of this rank by the pattern of a module.

    A block is pooled by the rank that has its first row, which fetches the other rows.

    Returns:
        keys and values; the first row of blocks of every rank and the end of the last; the number of tokens per row of
        blocks.
    """
    group, extent = module.process_group, borders[-1]
    size, *sizes = module.pattern.sizes(len(shape))
    blocks = [-(-border // size) for border in borders]
    wanted = list(pairwise(min(size * block, extent) for block in blocks))
    if wanted != list(pairwise(borders)):
        k, v = fetch(k, v, borders, wanted, math.prod(shape[1:]), group)
    first, last = wanted[group.rank()]
    if last > first:
        shape = [last - first, *shape[1:]]
        (k, v), *_ = module.pattern.pool((k, v), shape)
    plane = math.prod(-(-along // size) for along, size in zip(shape[1:], sizes, strict=True))
    return k, v, blocks, plane


def attend_all(
    module: ContextParallel, q: Tensor, k: Tensor, v: Tensor, shape: list[int], borders: list[int], **options: Any
) -> Tensor:
    """Computes the plain form with the pooled keys of all ranks; ``options`` are further arguments of its forward."""
    k, v, blocks, plane = pooled_keys(module, k, v, shape, borders)
    group, every = module.process_group, (0, blocks[-1])
    k, v = fetch(k, v, blocks, [every] * group.size(), plane, group)
    rank = group.rank()
    gathered = Gathered(module.pattern, borders[-1], (borders[rank], borders[rank + 1]), every)
    return module.with_pattern(gathered).forward(q, k, v, shape, **options)


def refuse_mask(key_mask: Tensor | None) -> None:
    """Raises an error if there is a key mask."""
    if key_mask is not None:
        raise ValueError("`key_mask` must be None over shards: crop the padding of each volume instead")


@dataclass(frozen=True)
class Gathered(Pattern):
    """A pattern for keys that have been pooled over the whole volume and queries of a shard.

    Args:
        pattern: the pattern of the whole volume.
        extent: size of the whole volume along its first axis.
        queries: the rows of the queries in the whole volume.
        keys: the rows of the keys in the pooled volume.
    """

    pattern: Pattern
    extent: int
    queries: Span
    keys: Span

    local = False

    def positions(self, shape: list[int], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the positions in the whole volume."""
        queries, keys = self.pattern.positions([self.extent, *shape[1:]], device)
        query_rows, key_rows = slice(*self.queries), slice(*self.keys)
        return [queries[0][query_rows], *queries[1:]], [keys[0][key_rows], *keys[1:]]


@functools.lru_cache(maxsize=256)
def rows_seen(pattern: Pattern, span: Span, shape: tuple[int, ...]) -> Span:
    """Returns the range of rows that contains the queries in ``span`` and all their keys.

    Args:
        pattern: a pattern with groups.
        span: the rows of the queries.
        shape: S of the whole volume.
    """
    begin, end = span
    rows = [begin, end - 1]
    for first_axis, *_ in pattern.covers(shape, np.arange):
        rows += np.flatnonzero(relation(first_axis, shape[0])[0][begin:end].any(0)).tolist()
    return min(rows), max(rows) + 1


@dataclass(frozen=True)
class Rows(Pattern):
    """A pattern of the whole volume, restricted to the queries of a shard and the rows that were fetched for it.

    Args:
        pattern: the pattern of the whole volume.
        extent: size of the whole volume along its first axis.
        first: the first row that was fetched.
        queries: the rows of the queries in the whole volume; other rows have only keys.
    """

    pattern: Pattern
    extent: int
    first: int
    queries: Span

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """Returns the sizes of the pattern."""
        return self.pattern.sizes(spatial_dims)

    def covers(self, shape: Sequence[Any], arange: Any) -> list[list[AxisGroups]]:
        """Returns the covers of the pattern in the rows that were fetched."""
        whole = self.pattern.covers((self.extent, *shape[1:]), arange)
        return [[self._here(first_axis), *others] for first_axis, *others in whole]

    def _here(self, groups: AxisGroups) -> AxisGroups:
        begin, end = self.queries
        own = (groups.queries >= begin) & (groups.queries < end)
        # Arithmetic, since it is the same for arrays of NumPy and for tensors, unlike `where`.
        queries = own * (groups.queries - self.first) + ~own * _OUTSIDE
        return groups._replace(queries=queries, keys=groups.keys - self.first)
