"""Patterns: which voxels see which. A pattern is a class that knows its groups; see `attn3d.attention.groups`."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attn3d.arguments import boolean, check_options, nearest, per_axis, read_spec
from attn3d.attention.groups import AxisGroups, Groups, alike, outer, relation
from attn3d.capture import at_least_single, larger, smaller, without_autocast

Sizes = int | Sequence[int]


@dataclass(frozen=True)
class Pattern:
    """The base of the patterns.

    A pattern of your own derives from it, as a frozen dataclass with a `name`, and says what the groups along an axis
    are; its name can be used in specs from then on.

    Attributes:
        name: in specs.
        biases: the position biases that it serves, of "axis", "joint" and "continuous".
        local: whether it has groups. If not, every query sees all keys that `pool` leaves, which pools blocks of
            `sizes` voxels, each without the others.
    """

    name: ClassVar[str] = ""
    biases: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.name:
            PATTERNS[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, field.name, tuple(value))

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """How many positions a voxel sees at most along every axis; a position bias has that many distances.

        Raises:
            TypeError, ValueError: when an option is not one positive integer, or one for each axis.
        """
        return per_axis("size", getattr(self, "size", 1), spatial_dims)

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """The groups along an axis.

        Args:
            axis: its number.
            extent: S of this axis: an integer, or in a capture a symbol or a tensor.
            spatial_dims: the number of axes.
            arange: makes a range of integers. Positions are to be computed from it by arithmetic and comparisons,
                and sizes by `attn3d.capture.smaller` and `larger`, so that a capture holds for every extent.
        """
        raise NotImplementedError

    def covers(self, shape: Sequence[Any], arange: Any) -> list[list[AxisGroups]]:
        """The groups along every axis. In each entry of the list every voxel is a query once."""
        axes = len(shape)
        return [[self.along(axis, extent, axes, arange) for axis, extent in enumerate(shape)]]

    def pool(
        self, tokens: Sequence[Tensor], shape: list[int], key_mask: Tensor | None = None
    ) -> tuple[Sequence[Tensor], list[int], Tensor | None]:
        """What the queries see of keys and values.

        Args:
            tokens: (B, H, N, d) each.
            shape: S, whose product is N.
            key_mask: (B, N), true where a key may be seen.

        Returns:
            tokens (B, H, M, d), their shape, and which of them may be seen, (B, M).
        """
        return tokens, shape, key_mask

    def positions(self, shape: list[int], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Along every axis where the queries are, and where the keys are that `pool` leaves, (S_a,) each."""
        every = [torch.arange(extent, device=device) for extent in shape]
        return every, every

    def groups(self, shape: Sequence[int]) -> list[Groups]:
        """All groups of a volume of the given shape, those that are alike in one entry."""
        return _groups(self, tuple(shape))

    def relations(self, shape: Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
        """For every cover and axis, which position sees which, and the distance in steps, (S_a, S_a) both."""
        return [
            [_as_tensors(*relation(groups, extent)) for groups, extent in zip(axes, shape, strict=True)]
            for axes in self.covers(shape, np.arange)
        ]


PATTERNS: dict[str, type[Pattern]] = {}


def _as_tensors(seen: Any, distance: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(seen), torch.tensor(distance)


@functools.lru_cache(maxsize=64)
def _groups(pattern: Pattern, shape: tuple[int, ...]) -> list[Groups]:
    found = []
    for number, axes in enumerate(pattern.covers(shape, np.arange)):
        batches = [alike(groups, extent) for groups, extent in zip(axes, shape, strict=True)]
        for chosen in itertools.product(*batches):
            seen = functools.reduce(functools.partial(outer, np.logical_and), [batch.seen for batch in chosen])
            found.append(
                Groups(
                    shape,
                    seen.shape,
                    [batch.queries for batch in chosen],
                    [batch.keys for batch in chosen],
                    None if seen.all() else seen,
                    [batch.distance for batch in chosen],
                    again=number > 0,
                )
            )
    return found


@dataclass(frozen=True)
class Global(Pattern):
    """Every voxel sees every voxel."""

    name = "global"
    local = False


@dataclass(frozen=True)
class PooledKeys(Pattern):
    """Every voxel sees the means of blocks of voxels, as in PVT (arXiv 2102.12122).

    Args:
        stride: the size of a block, one or one per axis. Blocks at the far end are means of what they have.
    """

    stride: Sizes

    name = "pooled_keys"
    local = False

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """The size of a block along every axis."""
        return per_axis("stride", self.stride, spatial_dims)

    def pool(
        self, tokens: Sequence[Tensor], shape: list[int], key_mask: Tensor | None = None
    ) -> tuple[Sequence[Tensor], list[int], Tensor | None]:
        """The means of blocks of tokens, of those that may be seen; a block without any is hidden."""
        pooled_shape = [(extent + size - 1) // size for extent, size in zip(shape, self.sizes(len(shape)), strict=True)]
        if key_mask is None:
            return [self._means(x, shape) for x in tokens], pooled_shape, None
        seen = key_mask[:, None, :, None]
        share = self._means(seen.to(at_least_single(tokens[0]).dtype), shape)
        share_or_one = share.masked_fill(share == 0, 1.0)
        pooled = [(self._means(x.masked_fill(~seen, 0.0), shape) / share_or_one).to(x.dtype) for x in tokens]
        return pooled, pooled_shape, (share > 0)[:, 0, :, 0]

    @without_autocast
    def _means(self, tokens: Tensor, shape: list[int]) -> Tensor:
        """The means of blocks, (B, H, N, d) to (B, H, M, d)."""
        tokens = tokens.unflatten(2, shape)
        for axis, (extent, size) in enumerate(zip(shape, self.sizes(len(shape)), strict=True)):
            count = (extent + size - 1) // size
            block = torch.div(torch.arange(extent, device=tokens.device), size, rounding_mode="floor")
            # A product needs no padding, and no case of its own for the last block.
            members = (block == torch.arange(count, device=tokens.device).unsqueeze(1)).to(tokens.dtype)
            behind = tokens.shape[3 + axis :]
            tokens = (members @ tokens.flatten(3 + axis)) / members.sum(1, keepdim=True)
            tokens = tokens.unflatten(-1, behind)
        return tokens.flatten(2, 1 + len(shape))

    def positions(self, shape: list[int], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """A key is in the middle of its block, as far as that is inside the volume."""
        middles = []
        for extent, size in zip(shape, self.sizes(len(shape)), strict=True):
            first = size * torch.arange((extent + size - 1) // size, device=device)
            middles.append((first + smaller(first + size, extent) - 1) / 2)
        return super().positions(shape, device)[0], middles


@dataclass(frozen=True)
class Window(Pattern):
    """A voxel sees the voxels of its window (Swin, arXiv 2103.14030).

    Args:
        size: of the window, one or one per axis; clipped to axes that are smaller.
        shift: moves the windows by ``size // 2`` along every axis that more than one window covers. What is cut
            off at the borders forms windows of its own: nothing is seen across the border.
    """

    size: Sizes
    shift: bool = False

    name = "window"
    biases = ("axis", "joint", "continuous")

    def __post_init__(self) -> None:
        super().__post_init__()
        boolean("shift", self.shift)

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Runs of ``size`` positions; with a shift, the first begins before the axis does."""
        size = self.sizes(spatial_dims)[axis]
        many = smaller(1, larger(0, extent - size))  # 1 if more than one window covers the axis, else 0
        cut = many * (size - size // 2) if self.shift else 0
        positions = size * arange((extent + cut + size - 1) // size)[:, None] + arange(size) - cut
        return AxisGroups(positions, positions)


@dataclass(frozen=True)
class Grid(Pattern):
    """A voxel sees a sparse grid over the whole volume (MaxViT, arXiv 2204.01697).

    Args:
        size: voxels of the grid along an axis, one or one per axis; they lie ``ceil(S / size)`` apart.
    """

    size: Sizes

    name = "grid"
    biases = ("axis", "joint", "continuous")

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """The positions of equal remainder by the step."""
        size = self.sizes(spatial_dims)[axis]
        step = (extent + size - 1) // size
        positions = arange(step)[:, None] + step * arange(size)
        return AxisGroups(positions, positions, step=step)


@dataclass(frozen=True)
class Axial(Pattern):
    """A voxel sees the lines through it along every axis, in one softmax, itself once."""

    name = "axial"

    def covers(self, shape: Sequence[Any], arange: Any) -> list[list[AxisGroups]]:
        """For every axis its lines. A voxel is on all of them, and sees itself on the first alone."""
        lines = []
        for along, length in enumerate(shape):
            line = arange(length)[None]
            others = None if along == 0 else line[..., None] != line[:, None]
            points = [arange(extent)[:, None] for extent in shape]
            groups = [AxisGroups(point, point) for point in points]
            groups[along] = AxisGroups(line, line, others)
            lines.append(groups)
        return lines


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """A voxel sees the voxels around it (NATTEN, arXiv 2204.07143 and 2209.15001; with a stride, arXiv 2504.16922).

    Along an axis, position i sees the ``size`` positions from i - size // 2, so that an even size reaches one further
    back. At a border the neighbourhood slides inward, so that every voxel sees equally many. With a stride, runs of so
    many positions see the neighbourhood of their leader, at stride // 2: a stride of 1 is a neighbourhood for each, one
    of ``size`` are windows that overlap nowhere but at the borders.

    Args:
        size: one or one per axis; clipped to axes that are smaller.
        dilation: distance between neighbours, one or one per axis.
        stride: how many positions share a neighbourhood, one or one per axis, at most ``size``. What they share is
            gathered once: a larger stride is faster.
    """

    size: Sizes
    dilation: Sizes = 1
    stride: Sizes = 1

    name = "neighborhood"
    biases = ("axis", "continuous")
    tile: ClassVar[int] = 4  # queries along an axis that share their keys: fewer waste less, more multiply faster

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """The neighbourhood's size along every axis."""
        per_axis("dilation", self.dilation, spatial_dims)
        sizes, strides = per_axis("size", self.size, spatial_dims), per_axis("stride", self.stride, spatial_dims)
        if any(stride > size for stride, size in zip(strides, sizes, strict=True)):
            raise ValueError(f"`stride` must be at most `size` {self.size}, got {self.stride}")
        return sizes

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Tiles of queries with all keys that one of them sees, for every remainder of the dilation."""
        size = self.sizes(spatial_dims)[axis]
        dilation = per_axis("dilation", self.dilation, spatial_dims)[axis]
        stride = per_axis("stride", self.stride, spatial_dims)[axis]
        tile = (self.tile + stride - 1) // stride * stride  # whole runs
        kernel = smaller(size, larger(1, extent // dilation))
        tiles = (extent + dilation * tile - 1) // (dilation * tile)
        remainder = arange(dilation)[:, None, None]
        length = (extent - remainder + dilation - 1) // dilation  # how many positions have that remainder
        first_of_tile = tile * arange(tiles)[:, None] + 0 * remainder
        queries = first_of_tile + arange(tile)
        leader = smaller(first_of_tile + arange(tile) // stride * stride + stride // 2, length - 1)
        lowest = smaller(larger(leader - kernel // 2, 0), larger(length - kernel, 0))
        keys = lowest[..., :1] + arange(size + tile - stride)
        first = lowest[..., None]
        seen = (keys[..., None, :] >= first) & (keys[..., None, :] < first + kernel)
        # Behind the last position of a remainder, dilation * position + remainder is behind the axis too.
        queries, keys = (dilation * positions + remainder for positions in (queries, keys))
        queries, keys = (positions.reshape(-1, positions.shape[-1]) for positions in (queries, keys))
        return AxisGroups(queries, keys, seen.reshape(-1, *seen.shape[2:]), dilation)


def create_pattern(spec: Pattern | str | Sequence[Any]) -> Pattern:
    """A pattern from a pattern, a name or ``(name, {options})``.

    Raises:
        TypeError: when ``spec`` is none of these, an option is unknown, naming the nearest, or one is missing.
        ValueError: when the name is unknown, naming the nearest.
    """
    if isinstance(spec, Pattern):
        return spec
    name, options = read_spec("pattern", spec)
    if name not in PATTERNS:
        raise ValueError(f"`pattern` got {name!r}; {nearest(name, PATTERNS)}")
    check_options(f"the pattern {name!r}", PATTERNS[name], options)
    for field in fields(PATTERNS[name]):
        if field.default is MISSING and field.name not in options:
            raise TypeError(f"the pattern {name!r} needs the option `{field.name}`")
    return PATTERNS[name](**options)
