"""Attention over whole volumes, compared with PyTorch's function and with blocks that build a score for every pair."""

import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attn3d
from attn3d.attention import VolumeAttention, dot_product
from examples.benchmarks.measuring import MIB, Bench, Row, inference, timed, training
from tests.mechanisms.cases.non_local import PlainNonLocal


def plain_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without softmax, with a score for every pair."""
    return (q @ k.mT / k.shape[2]) @ v


def attention(bench: Bench) -> Iterator[Row]:
    """Attention over whole volumes."""
    yield from one_head(bench)
    yield from without_softmax(bench)
    yield from blocks(bench)
    yield from windows(bench)


def one_head(bench: Bench) -> Iterator[Row]:
    """One head of width 64, as in a non-local block, against PyTorch's function on the same contiguous tensors."""
    for count, backends in ((4096, ("auto", "chunked")), (8000, ("auto",))):
        count = bench.size(count)
        tokens = [bench.random(1, 1, count, 64) for _ in range(3)]
        for backend in backends:

            def ours(q: Tensor, k: Tensor, v: Tensor, backend: str = backend) -> Tensor:
                return attn3d.attend(q, k, v, backend=backend)

            limits = (1.1, 0.85) if backend == "auto" else (None, None)
            for step, name, limit in ((inference, "forward", limits[0]), (training, "training", limits[1])):
                pair = step(ours, *tokens), step(scaled_dot_product_attention, *tokens)
                what = f"attend, {backend}, {name}, N = {count}"
                yield bench.time(what, "bare SDPA", *pair, limit)
                yield bench.memory(what, "bare SDPA", *pair)


def without_softmax(bench: Bench) -> Iterator[Row]:
    """The pairwise function theta_i . phi_j."""
    count = bench.size(8192)
    tokens = [bench.random(1, 1, count, 64) for _ in range(3)]
    for step, name in ((inference, "forward"), (training, "training")):
        pair = step(dot_product, *tokens), step(plain_dot_product, *tokens)
        what = f"dot_product, {name}, N = {count}"
        yield bench.time(what, "plain form", *pair, 1 / 10)
        yield bench.memory(what, "plain form", *pair, 1 / 50)


def blocks(bench: Bench) -> Iterator[Row]:
    """A non-local block in training, and one on a volume that is too large for the matrix of all pairs."""
    for size, least_memory, least_time in ((16, 1 / 14, 0.6), (20, 1 / 30, 0.55)):
        extent = bench.size(size)
        x = bench.random(1, 128, *[extent] * 3)
        ours, plain = (bench.placed(net) for net in (attn3d.NonLocal(3, 128), PlainNonLocal(128)))
        pair = training(ours, x), training(plain, x)
        what = f"NonLocal, training, {extent}³, C = 128"
        yield bench.time(what, "plain block", *pair, least_time)
        yield bench.memory(what, "plain block", *pair, least_memory)
    extent = bench.size(32)
    x = bench.random(1, 32, *[extent] * 3)
    net = bench.placed(attn3d.NonLocal(3, 32))
    plain = attn3d.estimate_memory("non_local", x.shape, backend="math") / MIB
    what = f"NonLocal, training, {extent}³, C = 32"
    yield Row(what, "plain, estimated", bench.peak(training(net, x)) / MIB, plain, "MiB", 60 / plain)


def windows(bench: Bench) -> Iterator[Row]:
    """Windows of 8³ voxels: memory compared with that of inputs and output, and time per voxel by size of volume."""
    layer = VolumeAttention(3, 4, pattern=attn3d.Window(8))
    volumes = [[bench.size(size)] * 3 for size in (24, 32, 48)]
    tokens = [[bench.random(1, 4, math.prod(shape), 16) for _ in range(3)] for shape in volumes]
    for step, name, limit in ((inference, "forward", 1.3), (training, "training", 2.0)):
        passes = [
            step(lambda q, k, v, shape=shape: layer(q, k, v, shape), *qkv)
            for shape, qkv in zip(volumes, tokens, strict=True)
        ]
        given = sum(x.nbytes for x in tokens[-1]) / MIB
        what = f"Window, {name}, {volumes[-1][0]}³, with q, k, v"
        yield Row(what, "q, k, v and out", given + bench.peak(passes[-1]) / MIB, given * 4 / 3, "MiB", limit)
        turns = bench.turns(*passes)
        of_voxel = [
            [1e6 * seconds / math.prod(shape) for seconds in times]
            for times, shape in zip(turns.seconds, volumes, strict=True)
        ]
        for shape, microseconds in zip(volumes[1:], of_voxel[1:], strict=True):
            what = f"Window, {name}, {shape[0]}³, a voxel"
            times = microseconds, of_voxel[0]
            yield timed(what, f"{volumes[0][0]}³", *times, "µs", limit=1.1, slowdown=turns.slowdown)
