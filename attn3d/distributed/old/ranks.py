"""The ranks that a volume is cut over, and which of its rows each must have to attend with its own."""

import math
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from attn3d.attention.plain import pool_tokens, pooled_shape
from attn3d.attention.sharded.collectives import Fetch, Span, Sum
from attn3d.attention.sharded.ring import Ring
from attn3d.attention.volume import VolumeAttention
from torch import Tensor
from torch.nn import functional

from attn3d.capture import needs_plain_operators, no_autocast

SHARINGS = ("ring", "all_gather")


class Ranks:
    """The ranks of a process group, each with a shard of a volume: rows of its first axis, in the order of ranks.

    A module can hold it: a copy of it, deep or pickled, is None, so that a copy of the module works on whole
    volumes.

    Args:
        group: a process group.
        sharing: how global attention comes to the keys of other ranks: "ring" or "all_gather".
    """

    def __init__(self, group: dist.ProcessGroup, sharing: str) -> None:
        self.group = group
        self.sharing = sharing

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    @torch.compiler.disable
    def sum(self, x: Tensor) -> Tensor:
        """``x``, of the same shape on every rank, summed over the ranks."""
        _refuse_capture()
        return Sum.apply(x, self.group)

    def total(self, number: int, like: Tensor) -> int:
        """A number that every rank has, summed over the ranks; ``like`` is on the device that they speak by."""
        return int(self.sum(torch.tensor(number, device=like.device)))

    @torch.compiler.disable
    def ring(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], scale: float, room: int) -> Tensor:
        """softmax(scale q k^T) v over the keys of all ranks, as `attn3d.attention.sharded.ring`."""
        plane = q.shape[2] // shape[0]
        cuts = self._cuts(q, shape)
        counts = [plane * (end - begin) for begin, end in pairwise(cuts)]
        with no_autocast(q):
            return Ring.apply(q, k, v, counts, scale, room, self.group)

    @torch.compiler.disable
    def all_keys(self, k: Tensor, v: Tensor, shape: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        """The keys and values of all ranks, (B, H, M, .), and S of the whole volume."""
        cuts = self._cuts(k, shape)
        tokens = self._fetch(torch.cat([k, v], 3), math.prod(shape[1:]), cuts, [(0, cuts[-1])] * self.group.size())
        k, v = tokens.split([k.shape[3], v.shape[3]], 3)
        return k, v, [cuts[-1], *shape[1:]]

    @torch.compiler.disable
    def gather(
        self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], layer: VolumeAttention
    ) -> tuple[Tensor, Tensor, Tensor, list[int], slice]:
        """Queries, keys and values with which attention that knows of no ranks gives what the whole volume gives.

        Args:
            q: the queries of this rank's shard, (B, H, N, d).
            k: its keys.
            v: its values.
            shape: S of the shard.
            layer: that is to attend, for its scope.

        Returns:
            the queries, among halos of zeros; the keys and values that they see, means of cells with pooled keys;
            S of the keys; which of the queries are those of this rank.
        """
        if layer.kind == "global":
            return q, *self.all_keys(k, v, shape), slice(None)
        cuts = self._cuts(q, shape)
        plane = q.shape[2] // shape[0]
        tokens = torch.cat([k, v], 3)
        if layer.kind == "pooled_keys":
            tokens = self._pooled(tokens, cuts, shape, layer.size)
            return q, *tokens.split([k.shape[3], v.shape[3]], 3), shape, slice(None)
        wanted = [rows_seen(layer, begin, end, cuts[-1]) for begin, end in pairwise(cuts)]
        first, last = wanted[self.group.rank()]
        tokens = self._fetch(tokens, plane, cuts, wanted)
        k, v = tokens.split([k.shape[3], v.shape[3]], 3)
        shape = [last - first, *shape[1:]]
        before = plane * (cuts[self.group.rank()] - first)
        after = plane * (last - first) - before - q.shape[2]
        own = slice(before, before + q.shape[2])
        return functional.pad(q, (0, 0, before, after)), k, v, shape, own

    def _cuts(self, q: Tensor, shape: list[int]) -> list[int]:
        """Where the shard of every rank begins, and where the last ends.

        Raises:
            ValueError: on every rank alike, when shards differ in more than their first spatial axis.
        """
        _refuse_capture()
        batch, heads, _, width = q.shape
        mine = torch.tensor([shape[0], heads * width, batch, *shape[1:]], device=q.device)
        gathered = [torch.empty_like(mine) for _ in range(self.group.size())]
        dist.all_gather(gathered, mine, group=self.group)
        sizes = torch.stack(gathered).tolist()
        if any(others[1:] != sizes[0][1:] for others in sizes):
            shards = [(batch, rows, *others) for rows, _, batch, *others in sizes]
            raise ValueError(f"`x` must differ between ranks in its first spatial axis alone, got (B, *S) {shards}")
        return list(accumulate((rows for rows, *_ in sizes), initial=0))

    def _fetch(self, tokens: Tensor, plane: int, cuts: list[int], wanted: list[Span]) -> Tensor:
        """(B, H, N, d) of this rank's rows, ``plane`` tokens each, to (B, H, M, d) of those that it wants."""
        rows = tokens.unflatten(2, (tokens.shape[2] // plane, plane)).movedim(2, 0)
        return Fetch.apply(rows, cuts, wanted, self.group).movedim(0, 2).flatten(2, 3)

    def _pooled(self, tokens: Tensor, cuts: list[int], shape: list[int], stride: list[int]) -> Tensor:
        """The means of cells of the whole volume; a cell is pooled where its first row is."""
        rows = min(stride[0], cuts[-1])
        begins = [min(-(-cut // rows) * rows, cuts[-1]) for cut in cuts]
        wanted = list(pairwise(begins))
        first, last = wanted[self.group.rank()]
        tokens = self._fetch(tokens, math.prod(shape[1:]), cuts, wanted)
        if last > first:
            tokens = pool_tokens(tokens, [last - first, *shape[1:]], stride)
        cells = list(accumulate((-(-(last - first) // rows) for first, last in wanted), initial=0))
        plane = math.prod(pooled_shape(shape[1:], stride[1:]))
        return self._fetch(tokens, plane, cells, [(0, cells[-1])] * self.group.size())


def _refuse_capture() -> None:
    if needs_plain_operators() or torch.compiler.is_exporting():
        raise ValueError("a module over ranks cannot be traced or exported: take a copy, which works on whole volumes")


def rows_seen(layer: VolumeAttention, begin: int, end: int, extent: int) -> Span:
    """The rows that the queries of rows ``begin`` to ``end`` see, cut so that they may stand for the volume.

    Over these rows alone the layer's scope has, for those queries, the pairs that it has over all rows.

    Args:
        layer: that is to attend, for its scope, which is "window" or "neighborhood".
        begin: of the rows.
        end: behind the last.
        extent: of the whole volume along its first axis.
    """
    if layer.kind == "window":
        return _rows_of_windows(layer.size[0], layer.shift, begin, end, extent)
    step = layer.dilation[0]
    half = step * (layer.size[0] // 2)
    least = step * min(layer.size[0], max(1, extent // step))  # fewer rows would clip the neighbourhood
    first = max(0, min(begin - half, extent - least))
    return first, min(extent, max(end + half, first + least))


def _rows_of_windows(size: int, shift: bool, begin: int, end: int, extent: int) -> Span:
    """Whole windows; with a shift, from where it gives the same windows again, half a window further out."""
    size = min(size, extent)
    offset = size // 2 if shift and extent > size else 0
    first = max(0, (begin - offset) // size * size)
    last = min(extent, ((end - 1 - offset) // size + 1) * size + offset)
    if offset > 0 and last - first <= size and first > 0:  # so few rows would be one window, without a shift
        first -= size
    return first, last
