"""Who sees whom: the scope is part of the model.

Every scope but `Axial` and `PooledKeys` is described axis by axis: an axis is cut into cells, a cell has query
positions and key positions, and a voxel sees the keys of the product of its cells. `attn3d.attention.cells`
builds them; here are their names and their arguments.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from attn3d.arguments import boolean, check_options, nearest, odd_per_axis, per_axis, read_spec

Sizes = int | Sequence[int]


def _freeze(value: Sizes) -> Sizes:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@dataclass(frozen=True)
class Scope:
    """The base of the scopes: `Global`, `Window`, `Grid`, `Axial`, `Neighborhood`, `PooledKeys`."""

    def per_axis(self, spatial_dims: int) -> list[int]:
        """Its sizes, one for each axis; empty where it has none.

        Raises:
            TypeError, ValueError: when there is not one positive integer for each axis.
        """
        return []

    def dilation_per_axis(self, spatial_dims: int) -> list[int]:
        """The distance between neighbours along each axis.

        Raises:
            TypeError, ValueError: when there is not one positive integer for each axis.
        """
        return [1] * spatial_dims


@dataclass(frozen=True)
class Global(Scope):
    """Every voxel sees every voxel."""


@dataclass(frozen=True)
class Window(Scope):
    """A voxel sees the voxels of its window (Swin, arXiv 2103.14030).

    Args:
        size: of the window, one or one per axis; clipped to axes that are smaller.
        shift: moves the windows by ``size // 2`` along every axis that more than one window covers. What is cut
            off at the borders forms windows of its own: nothing is seen across the border.
    """

    size: Sizes
    shift: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _freeze(self.size))
        boolean("shift", self.shift)

    def per_axis(self, spatial_dims: int) -> list[int]:
        """The window's size along each axis."""
        return list(per_axis("size", self.size, spatial_dims))


@dataclass(frozen=True)
class Grid(Scope):
    """A voxel sees a sparse grid over the whole volume (MaxViT, arXiv 2204.01697).

    Args:
        size: voxels of the grid along an axis, one or one per axis; they lie ``ceil(S / size)`` apart.
    """

    size: Sizes

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _freeze(self.size))

    def per_axis(self, spatial_dims: int) -> list[int]:
        """The grid's size along each axis."""
        return list(per_axis("size", self.size, spatial_dims))


@dataclass(frozen=True)
class Axial(Scope):
    """A voxel sees the lines through it along every axis, in one softmax, itself once."""


@dataclass(frozen=True)
class Neighborhood(Scope):
    """A voxel sees the voxels around it (NATTEN, arXiv 2204.07143 and 2209.15001).

    At a border the neighbourhood slides inward, so that every voxel sees equally many.

    Args:
        size: odd, one or one per axis; clipped to axes that are smaller.
        dilation: distance between neighbours, one or one per axis.
    """

    size: Sizes
    dilation: Sizes = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _freeze(self.size))
        object.__setattr__(self, "dilation", _freeze(self.dilation))

    def per_axis(self, spatial_dims: int) -> list[int]:
        """The neighbourhood's size along each axis."""
        return list(odd_per_axis("size", self.size, spatial_dims))

    def dilation_per_axis(self, spatial_dims: int) -> list[int]:
        """The distance between neighbours along each axis."""
        return list(per_axis("dilation", self.dilation, spatial_dims))


@dataclass(frozen=True)
class PooledKeys(Scope):
    """Every voxel sees the means of cells of voxels, as in PVT (arXiv 2102.12122).

    Args:
        stride: the size of a cell, one or one per axis. Cells at the far end are means of what they have.
    """

    stride: Sizes

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", _freeze(self.stride))

    def per_axis(self, spatial_dims: int) -> list[int]:
        """The cell's size along each axis."""
        return list(per_axis("stride", self.stride, spatial_dims))


SCOPES: dict[str, type[Scope]] = {
    "global": Global,
    "window": Window,
    "grid": Grid,
    "axial": Axial,
    "neighborhood": Neighborhood,
    "pooled_keys": PooledKeys,
}


def create_scope(spec: Scope | str | Sequence[Any]) -> Scope:
    """A scope from a scope, a name or ``(name, {options})``.

    Raises:
        TypeError: when ``spec`` is none of these, an option is unknown, naming the nearest, or one is missing.
        ValueError: when the name is unknown, naming the nearest.
    """
    if isinstance(spec, Scope):
        if type(spec) not in SCOPES.values():
            raise TypeError(
                f"`scope` must be one of {', '.join(kind.__name__ for kind in SCOPES.values())}, got {spec}"
            )
        return spec
    name, options = read_spec("scope", spec)
    if name not in SCOPES:
        raise ValueError(f"`scope` got {name!r}; {nearest(name, SCOPES)}")
    check_options(f"the scope {name!r}", SCOPES[name], options)
    for field in fields(SCOPES[name]):
        if field.default is MISSING and field.name not in options:
            raise TypeError(f"the scope {name!r} needs the option `{field.name}`")
    return SCOPES[name](**options)


def name_of(scope: Scope) -> str:
    """The name under which a scope's class is found."""
    return next(name for name, kind in SCOPES.items() if type(scope) is kind)
