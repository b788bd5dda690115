"""The bytes that a mechanism must move, whoever writes it: how often something of its map's size is read or written.

What does not wait for anything else shares one pass over the map, what can be computed anew is not stored, and what is
small (a value per channel or per voxel) costs nothing. Times the size of the map over the bandwidth of a copy of the
same size, that is the least time of a forward and a backward pass.
"""

from typing import NamedTuple


class Floor(NamedTuple):
    """Passes over a map, and which they are."""

    forward: int
    backward: int
    forward_passes: str
    backward_passes: str

    @property
    def passes(self) -> int:
        """Both ways."""
        return self.forward + self.backward


PASSES = {
    "se": Floor(3, 4, "means: x; gate: x, y", "gate: dy, x; input: dy, dx"),
    "eca": Floor(3, 4, "means: x; gate: x, y", "gate: dy, x; input: dy, dx"),
    "cbam": Floor(
        4, 6, "means and maxima: x; those per voxel: x; gates: x, y", "voxels: dy, x; channels: dy, x; input: dy, dx"
    ),
    "bam": Floor(3, 4, "means and maxima both ways: x; gate: x, y", "both maps: dy, x; input: dy, dx"),
    "coord": Floor(3, 4, "all profiles: x; gates: x, y", "all gates: dy, x; input: dy, dx"),
    "sk": Floor(5, 6, "means: both U; sum: both U, y", "weights: dy, both U; branches: dy, both dU"),
    "gc": Floor(3, 4, "softmax and its mean in one: x; sum: x, y", "context: dy; input: dy, x, dx"),
    "non_local": Floor(3, 5, "keys and values: x; the rest: x, y", "keys and values: dy, x; input: dy, x, dx"),
    "mhsa": Floor(3, 5, "keys and values: x; the rest: x, y", "keys and values: dy, x; input: dy, x, dx"),
    "danet": Floor(3, 5, "keys, values, channel energies: x; the rest: x, y", "all of these: dy, x; input: dy, x, dx"),
}
