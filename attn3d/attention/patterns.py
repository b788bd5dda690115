"""Patterns: which voxels see which. Every pattern is a class that returns its groups, see `attn3d.attention.groups`."""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attn3d.arguments import Spec, boolean, check_options, nearest, of_python, per_axis, read_spec
from attn3d.attention.groups import AxisGroups, Groups, alike, outer, relation
from attn3d.capture import at_least_single, larger, smaller, without_autocast

Sizes = int | Sequence[int]


@dataclass(frozen=True)
class Pattern:
    """Base class of the patterns.

    To define a pattern, derive a frozen dataclass with a `name` and implement `along`, which returns the groups along
    an axis. The name can then be used in specs.

    Attributes:
        name: name in specs.
        biases: the supported position biases, of "axis", "joint" and "continuous"; none with several covers.
        local: whether the pattern has groups. If not, every query sees all keys that `pool` returns. `pool` must
            reduce each block of `sizes` voxels independently.
    """

    name: ClassVar[str] = ""
    biases: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            return
        owner = PATTERNS.setdefault(cls.name, cls)
        if (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"`name` {cls.name!r} is already the name of {owner.__qualname__}")
        PATTERNS[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, of_python(getattr(self, field.name)))

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """Returns the largest number of positions that a voxel sees along every axis, which sizes a position bias.

        Raises:
            TypeError, ValueError: if an option is not a positive integer, or one for each axis.
        """
        return per_axis("size", getattr(self, "size", 1), spatial_dims)

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Returns the groups along an axis.

        Args:
            axis: index of the axis.
            extent: S of this axis: an integer, or during a capture a symbol or a tensor.
            spatial_dims: the number of axes.
            arange: returns a range of integers. Compute positions from it by arithmetic and comparisons, and sizes by
                `attn3d.capture.smaller` and `larger`, so that a capture is valid for every extent.
        """
        raise NotImplementedError

    def covers(self, shape: Sequence[Any], arange: Any) -> list[list[AxisGroups]]:
        """Returns a list of covers. A cover has groups along every axis in which every voxel is a query once."""
        axes = len(shape)
        return [[self.along(axis, extent, axes, arange) for axis, extent in enumerate(shape)]]

    def pool(
        self, tokens: Sequence[Tensor], shape: list[int], key_mask: Tensor | None = None
    ) -> tuple[Sequence[Tensor], list[int], Tensor | None]:
        """Reduces keys and values to the M tokens that the queries see.

        Args:
            tokens: tensors of (B, H, N, d).
            shape: S, whose product is N.
            key_mask: (B, N), true where a key may be seen.

        Returns:
            the tokens (B, H, M, d), their shape, and the mask of those that may be seen, (B, M).
        """
        return tokens, shape, key_mask

    def positions(self, shape: list[int], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the positions of the queries and of the pooled keys along every axis, (S_a,) each."""
        every = [torch.arange(extent, device=device) for extent in shape]
        return every, every

    def groups(self, shape: Sequence[int]) -> list[Groups]:
        """Returns all groups of a volume of the given shape, with identical groups batched."""
        return _groups(self, tuple(shape))

    def relations(self, shape: Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
        """Returns for every cover and axis which position sees which, and their distance in steps, (S_a, S_a) each."""
        relations = []
        for axes in self.covers(shape, np.arange):
            arrays = [relation(groups, extent) for groups, extent in zip(axes, shape, strict=True)]
            relations.append([(torch.tensor(seen), torch.tensor(distance)) for seen, distance in arrays])
        return relations


PATTERNS: dict[str, type[Pattern]] = {}


@functools.lru_cache(maxsize=64)
def _groups(pattern: Pattern, shape: tuple[int, ...]) -> list[Groups]:
    found = []
    for number, axes in enumerate(pattern.covers(shape, np.arange)):
        batches = [alike(groups, extent) for groups, extent in zip(axes, shape, strict=True)]
        for chosen in itertools.product(*batches):
            seen = outer(operator.and_, [batch.seen for batch in chosen])
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
        stride: block size, one integer or one per axis. Blocks at the upper border are means of the voxels they have.
    """

    stride: Sizes

    name = "pooled_keys"
    local = False

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """Returns the block size along every axis."""
        return per_axis("stride", self.stride, spatial_dims)

    def pool(
        self, tokens: Sequence[Tensor], shape: list[int], key_mask: Tensor | None = None
    ) -> tuple[Sequence[Tensor], list[int], Tensor | None]:
        """Returns the means of the tokens in each block that may be seen. A block without visible tokens is masked."""
        pooled_shape = [(extent + size - 1) // size for extent, size in zip(shape, self.sizes(len(shape)), strict=True)]
        if key_mask is None:
            return [self._means(x, shape) for x in tokens], pooled_shape, None
        seen = key_mask[:, None, :, None]
        share = self._means(seen.to(at_least_single(tokens[0]).dtype), shape)
        divisor = share.masked_fill(share == 0, 1.0)
        wide = (at_least_single(x.masked_fill(~seen, 0.0)) for x in tokens)  # so that the result is rounded once
        pooled = [(self._means(x, shape) / divisor).to(own.dtype) for x, own in zip(wide, tokens, strict=True)]
        return pooled, pooled_shape, (share > 0)[:, 0, :, 0]

    @without_autocast
    def _means(self, tokens: Tensor, shape: list[int]) -> Tensor:
        """Returns the means of blocks, (B, H, N, d) to (B, H, M, d), summed in at least single precision."""
        means, sizes = at_least_single(tokens), [*shape, tokens.shape[3]]
        for extent, size in zip(shape, self.sizes(len(shape)), strict=True):
            count = (extent + size - 1) // size
            block = torch.div(torch.arange(extent, device=tokens.device), size, rounding_mode="floor")
            # A matrix product needs neither padding nor a special case for the last block.
            members = (block == torch.arange(count, device=tokens.device).unsqueeze(1)).to(means.dtype)
            # The axis comes first, and its blocks last. An export at a single block would take 1 from a tensor's shape
            # for a constant; the sizes here are computed.
            means = means.reshape([*tokens.shape[:2], extent, math.prod(sizes[1:])])
            means = ((members @ means) / members.sum(1, keepdim=True)).mT
            sizes = [*sizes[1:], count]
        means = means.reshape([*tokens.shape[:2], sizes[0], math.prod(sizes[1:])]).mT
        return means.contiguous().to(tokens.dtype)

    def positions(self, shape: list[int], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the positions. A key is at the centre of the part of its block that is inside the volume."""
        middles = []
        for extent, size in zip(shape, self.sizes(len(shape)), strict=True):
            first = size * torch.arange((extent + size - 1) // size, device=device)
            middles.append((first + smaller(first + size, extent) - 1) / 2)
        return super().positions(shape, device)[0], middles


@dataclass(frozen=True)
class Window(Pattern):
    """A voxel sees the voxels of its window (Swin, arXiv 2103.14030).

    Args:
        size: window size, one integer or one per axis; clipped to the size of the axis.
        shift: whether to move the windows by ``size // 2`` along every axis that has more than one window. The parts
            cut off at the borders are separate, smaller windows: no voxel sees across the border.
    """

    size: Sizes
    shift: bool = False

    name = "window"
    biases = ("axis", "joint", "continuous")

    def __post_init__(self) -> None:
        super().__post_init__()
        boolean("shift", self.shift)

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Returns runs of ``size`` positions. With a shift, the first run starts at a negative position."""
        size = self.sizes(spatial_dims)[axis]
        many = smaller(1, larger(0, extent - size))  # 1 if the axis has more than one window, else 0
        cut = many * (size - size // 2) if self.shift else 0
        positions = size * arange((extent + cut + size - 1) // size)[:, None] + arange(size) - cut
        return AxisGroups(positions, positions)


@dataclass(frozen=True)
class Grid(Pattern):
    """A voxel sees a sparse grid over the whole volume (MaxViT, arXiv 2204.01697).

    Args:
        size: the most grid voxels along an axis, one integer or one per axis. They are ``ceil(S / size)`` apart.
    """

    size: Sizes

    name = "grid"
    biases = ("axis", "joint", "continuous")

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Returns the positions with equal remainder modulo the step."""
        size = self.sizes(spatial_dims)[axis]
        step = (extent + size - 1) // size
        positions = arange(step)[:, None] + step * arange(size)
        return AxisGroups(positions, positions, step=step)


@dataclass(frozen=True)
class Axial(Pattern):
    """A voxel sees the lines through it along every axis, in one softmax. It sees itself once."""

    name = "axial"

    def covers(self, shape: Sequence[Any], arange: Any) -> list[list[AxisGroups]]:
        """Returns one cover per axis, with the lines along it. A voxel sees itself only along the first axis."""
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

    Along an axis, position i sees the ``size`` positions from i - size // 2; an even size includes one more position
    before i than after it. At a border the neighbourhood is shifted inward, so that every voxel sees the same number of
    voxels. With a stride, every run of ``stride`` positions shares the neighbourhood of its leader, the position
    stride // 2 of the run. A stride of 1 gives every position its own neighbourhood; a stride of ``size`` gives windows
    that overlap only at the upper border.

    Args:
        size: neighbourhood size, one integer or one per axis; clipped to ``S // dilation``, at least 1.
        dilation: distance between neighbours, one integer or one per axis.
        stride: number of positions that share a neighbourhood, one integer or one per axis, at most ``size``, and
            clipped likewise. Shared keys are gathered once, so a larger stride is faster.
    """

    size: Sizes
    dilation: Sizes = 1
    stride: Sizes = 1

    name = "neighborhood"
    biases = ("axis", "continuous")
    # Queries along an axis that are computed with the same keys: a smaller tile masks fewer pairs, a larger one
    # multiplies faster.
    tile: ClassVar[int] = 4

    def sizes(self, spatial_dims: int) -> tuple[int, ...]:
        """Returns the size of the neighbourhood along every axis."""
        per_axis("dilation", self.dilation, spatial_dims)
        sizes, strides = per_axis("size", self.size, spatial_dims), per_axis("stride", self.stride, spatial_dims)
        if any(stride > size for stride, size in zip(strides, sizes, strict=True)):
            raise ValueError(f"`stride` must be at most `size` {self.size}, got {self.stride}")
        return sizes

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """Returns tiles of queries with the keys that any of them sees, for every remainder modulo the dilation."""
        size = self.sizes(spatial_dims)[axis]
        dilation = per_axis("dilation", self.dilation, spatial_dims)[axis]
        stride = per_axis("stride", self.stride, spatial_dims)[axis]
        tile = (self.tile + stride - 1) // stride * stride  # whole runs
        kernel = smaller(size, larger(1, extent // dilation))
        run = smaller(stride, kernel)  # a longer one would have positions outside its neighbourhood
        tiles = (extent + dilation * tile - 1) // (dilation * tile)
        remainder = arange(dilation)[:, None, None]
        length = (extent - remainder + dilation - 1) // dilation  # number of positions with this remainder
        queries = tile * arange(tiles)[:, None] + 0 * remainder + arange(tile)
        leader = smaller(queries // run * run + run // 2, length - 1)
        lowest = smaller(larger(leader - kernel // 2, 0), larger(length - kernel, 0))
        keys = lowest[..., :1] + arange(size + tile - stride)
        first = lowest[..., None]
        seen = (keys[..., None, :] >= first) & (keys[..., None, :] < first + kernel)
        # Positions beyond ``length`` are mapped beyond the end of the axis, where they are ignored.
        queries = dilation * queries + remainder
        keys = dilation * keys + remainder
        return AxisGroups(
            queries.reshape(-1, queries.shape[-1]),
            keys.reshape(-1, keys.shape[-1]),
            seen.reshape(-1, *seen.shape[2:]),
            dilation,
        )


PatternSpec = Pattern | Spec


def create_pattern(spec: PatternSpec) -> Pattern:
    """Creates a pattern from its name or ``(name, {options})``. A pattern is returned as it is.

    Raises:
        TypeError: if ``spec`` is none of these, or an option is unknown or missing.
        ValueError: if the name is unknown; the message gives the nearest name.
    """
    if isinstance(spec, Pattern):
        return spec
    name, options = read_spec("pattern", spec)
    if name not in PATTERNS:
        raise ValueError(f"`pattern` got {name!r}; {nearest(name, PATTERNS)}")
    check_options(f"the pattern {name!r}", PATTERNS[name], options)
    return PATTERNS[name](**options)
