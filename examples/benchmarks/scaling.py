"""Time and memory in training against the number of voxels N, of every mechanism and every pattern of attention."""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import nn

import attn3d
from examples.benchmarks.measuring import Bench, is_loaded, quartiles, training
from tests.configurations import OF_ONE_MAP
from tests.mechanisms.cases.non_local import PlainNonLocal

LARGEST, CHANNELS = (32, 32, 32), 64
OCTAVES, FEW_OCTAVES = 6, 3  # from the largest volume down to a 64th of it, or to an 8th, which a slope needs
# The largest numbers of voxels for attention over all pairs, and with the matrix of all pairs in memory.
MOST_PAIRED, MOST_IN_A_MATRIX = 2**14, 2**12
PAIRWISE = ("non_local", "mhsa", "danet")
PATTERNS: dict[str, Any] = {
    "window 8": ("window", {"size": 8}),
    "window 8, shifted": ("window", {"size": 8, "shift": True}),
    "grid 8": ("grid", {"size": 8}),
    "axial": "axial",
    "neighborhood 7": ("neighborhood", {"size": 7}),
    "pooled_keys 8": ("pooled_keys", {"stride": 8}),
}


class Curve(NamedTuple):
    """Time and memory against N.

    Attributes:
        name: name of a mechanism or a pattern.
        kind: "mechanism" or "pattern".
        points: (N, median of seconds, peak bytes without the input, two quartiles of seconds), in ascending order of N.
        slowdown: the time of the fixed piece of work as a multiple of its best time, at the point where it was longest.
    """

    name: str
    kind: str
    points: list[tuple[int, float, int, float, float]]
    slowdown: float

    def slope(self, column: int) -> float:
        """The exponent of N with which time (column 1) or memory (column 2) grows over the last factor of 8 in N."""
        last = [point for point in self.points if point[0] >= self.points[-1][0] / 8]
        logarithms = ([math.log(point[place]) for point in last] for place in (0, column))
        return statistics.linear_regression(*logarithms).slope

    @property
    def loaded(self) -> bool:
        """Whether other processes used the machine. Then the slope of the time is not reliable."""
        return is_loaded(self.slowdown)

    def saved(self) -> dict[str, Any]:
        """The curve as plain data for JSON."""
        return self._asdict() | {"slopes": [self.slope(1), self.slope(2)], "loaded": self.loaded}


def scaling(bench: Bench) -> Iterator[Curve]:
    """Yields the curves of all mechanisms and patterns."""
    channels = bench.width(CHANNELS)
    shapes = halved(bench.volume(*LARGEST), FEW_OCTAVES if bench.small else OCTAVES)
    for name in bench.chosen(OF_ONE_MAP):
        most = MOST_PAIRED if name in PAIRWISE else None
        yield curve(bench, name, "mechanism", partial(create, name, channels), shapes, channels, most)
    if bench.chosen(["non_local"]):
        yield from patterns(bench, channels, shapes)


def patterns(bench: Bench, channels: int, shapes: list[tuple[int, ...]]) -> Iterator[Curve]:
    """A non-local block with every pattern, and with the matrix of all pairs."""
    yield curve(
        bench, "plain, all pairs", "pattern", partial(PlainNonLocal, channels), shapes, channels, MOST_IN_A_MATRIX
    )
    yield curve(bench, "global", "pattern", partial(create, "non_local", channels), shapes, channels, MOST_PAIRED)
    for name, pattern in PATTERNS.items():
        make = partial(create, ("non_local", {"pattern": pattern}), channels)
        yield curve(bench, name, "pattern", make, shapes, channels)


def create(spec: Any, channels: int) -> nn.Module:
    """A mechanism for 3-D volumes."""
    return attn3d.create_attention(spec, spatial_dims=3, channels=channels)


def halved(largest: tuple[int, ...], octaves: int) -> list[tuple[int, ...]]:
    """The volume, half of it, a quarter, .., smallest first. Each step halves the first of the longest extents."""
    shapes = [largest]
    while len(shapes) <= octaves and max(shapes[0]) > 1:
        shape = list(shapes[0])
        shape[shape.index(max(shape))] //= 2
        shapes.insert(0, tuple(shape))
    return shapes


def curve(
    bench: Bench,
    name: str,
    kind: str,
    make: Callable[[], nn.Module],
    shapes: list[tuple[int, ...]],
    channels: int,
    most: int | None = None,
) -> Curve:
    """Forward and backward on every volume of at most ``most`` voxels."""
    points, slowdowns = [], []
    for shape in shapes:
        if most is None or math.prod(shape) <= most:
            step = training(bench.placed(make()), bench.random(1, channels, *shape))
            (seconds,), slowdown = bench.turns(step)
            slowdowns.append(slowdown)
            points.append((math.prod(shape), statistics.median(seconds), bench.peak(step), *quartiles(seconds)))
    return Curve(name, kind, points, max(slowdowns))
