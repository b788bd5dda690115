"""Every mechanism, eager and compiled, compared with its plain form and with the time of its necessary passes."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import attn3d
from examples.benchmarks.measuring import MIB, Bench, Row, saved_bytes, sizes, timed, training
from examples.benchmarks.peers import peers
from tests.configurations import OVER_VOXELS, create
from tests.mechanisms.case import copy_parameters
from tests.mechanisms.cases import CASES

# Extents and channels of the volume. A matrix of all pairs of 32³ voxels takes 4 GiB, and mhsa has eight of them.
# Therefore attention over voxels is measured on the smaller volume if the volume has more voxels than this maximum.
MOST_IN_A_MATRIX = 2**13
LARGE, SMALLER, CHANNELS = (32, 32, 32), (16, 16, 16), 128

# The limit of the ratio of compiled forms, at these sizes and in single precision. Other limits are in the test cases.
MOST_COMPILED = 1.1


class Pair(NamedTuple):
    """A mechanism and its plain form with the same weights, and the inputs of both."""

    name: str
    ours: nn.Module
    plain: nn.Module
    inputs: tuple[Tensor, ...]
    volume: str


class Merge(nn.Module):
    """Selective kernels without their convolutions, from the maps of the branches to their weighted sum."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        del net.branches  # their parameters would not get gradients
        self.net = net
        self.library = isinstance(net, attn3d.SelectiveKernel)

    def forward(self, *maps: Tensor) -> Tensor:
        """The output y for the maps U_i."""
        return self.net.merge(list(maps), maps[0]) if self.library else self.net.merge(list(maps))


def mechanisms(bench: Bench) -> Iterator[Row]:
    """Every mechanism, compared with its plain form and with modules of other libraries."""
    for name in bench.chosen(CASES):
        pair = paired(bench, name)
        yield from what_is_saved(bench, pair)
        yield from eager(bench, pair)
        yield from compiled(bench, pair)
    yield from peers(bench, bench.volume(*LARGE), smaller(bench), bench.width(CHANNELS))


def smaller(bench: Bench) -> tuple[int, ...]:
    """The volume for a score of every pair."""
    chosen = bench.shape is not None and math.prod(bench.shape) <= MOST_IN_A_MATRIX
    return bench.shape if chosen else tuple(bench.size(extent) for extent in SMALLER)


def paired(bench: Bench, name: str) -> Pair:
    """The mechanism and its plain form on the bench's volume."""
    shape = smaller(bench) if name in OVER_VOXELS else bench.volume(*LARGE)
    channels = bench.width(CHANNELS)
    plain = CASES[name].plain(channels)
    ours = create(name, spatial_dims=3, channels=channels)
    copy_parameters(plain, ours)
    count, volume = 1, sizes(shape, channels)
    if name == "sk":
        plain, ours = Merge(plain), Merge(ours)
        count, volume = 2, f"two branches of {volume}"
    inputs = tuple(bench.random(1, channels, *shape) for _ in range(count))
    return Pair(name, bench.placed(ours), bench.placed(plain), inputs, volume)


def what_is_saved(bench: Bench, pair: Pair) -> Iterator[Row]:
    """Bytes saved for backward without input and output, compared with the size of x and with the plain form."""
    ours, plain = (saved_bytes(net, *pair.inputs) / MIB for net in (pair.ours, pair.plain))
    what = f"{pair.name}, saved, {pair.volume}"
    of_map = pair.inputs[0].nbytes / MIB
    yield Row(what, "one map", ours, of_map, "MiB", CASES[pair.name].saved, group=pair.name, measure="saved / map")
    yield Row(what, "plain form", ours, plain, "MiB", group=pair.name, measure="saved / plain")


def eager(bench: Bench, pair: Pair) -> Iterator[Row]:
    """Time and memory of a forward and a backward pass."""
    steps = [training(net, *pair.inputs) for net in (pair.ours, pair.plain)]
    what = f"{pair.name}, training, {pair.volume}"
    yield from beside_the_floor(bench, pair, what, "plain form", steps, CASES[pair.name].time, "time")
    yield bench.memory(what, "plain form", *steps, group=pair.name, measure="peak / plain")


def compiled(bench: Bench, pair: Pair) -> Iterator[Row]:
    """Time of a forward and a backward pass with both compiled."""
    # For small sizes, the front end of the compiler is enough, since it counts the graph breaks.
    backend = "aot_eager" if bench.small else "inductor"
    torch.compiler.reset()
    breaks = torch._dynamo.explain(pair.ours)(*pair.inputs).graph_break_count
    torch.compiler.reset()
    nets = [torch.compile(net, backend=backend, dynamic=False) for net in (pair.ours, pair.plain)]
    steps = [training(net, *pair.inputs) for net in nets]
    what = f"{pair.name}, compiled, {breaks or 'no'} graph breaks, {pair.volume}"
    yield from beside_the_floor(bench, pair, what, "compiled plain form", steps, MOST_COMPILED, "compiled")


def beside_the_floor(
    bench: Bench,
    pair: Pair,
    what: str,
    beside: str,
    steps: list[Callable],
    limit: float | None,
    measure: str,
) -> Iterator[Row]:
    """The time of ours, compared with the plain form and with the time of copying the bytes of the floor.

    The floor is the number of passes over the map that every implementation needs, as its test case lists them.
    """
    x = pair.inputs[0].detach()
    to = torch.empty_like(x)
    (ours, plain, copies), slowdown = bench.turns(*steps, lambda: to.copy_(x))
    shared = {"slowdown": slowdown, "group": pair.name}
    yield timed(what, beside, ours, plain, limit=limit, measure=f"{measure} / plain", **shared)
    passes = CASES[pair.name].floor.passes
    floor = [seconds * passes / 2 for seconds in copies]  # a copy has two passes: it reads and writes
    yield timed(what, f"floor, {passes} passes", ours, floor, measure=f"{measure} / floor", **shared)
