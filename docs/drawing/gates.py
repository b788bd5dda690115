"""Figures of the mechanisms that gate or choose: se, eca, cbam, bam, coord, sk."""

import numpy as np
import torch

from drawing.anatomy import SIZE, channels, learnt, seen
from drawing.card import BLUE, COOL, DEPTH, GREYS, ORANGE, TEAL, Card
from drawing.parts import (
    MIDDLE,
    NOTE,
    PLUS,
    SIGMOID,
    T1,
    TIMES,
    flat,
    fork,
    join,
    output,
    result,
    source,
    stretch,
)  # fmt: skip
from drawing.row import Row

CHOSEN = 14  # the channel of the selective kernels that is drawn: both of its branches count
MEANS, MAXIMA = channels().mean((0, 2, 3, 4)), channels().amax((0, 2, 3, 4))


def se() -> Card:
    """Squeeze-and-excitation."""
    card = Card(1060, 270, "Squeeze-and-excitation", NOTE)
    mechanism = learnt("se", seed=3, reduction=4)
    gate = flat(mechanism.channel_gate(channels()))
    hidden = flat(torch.relu(mechanism.squeeze(MEANS)))
    row = source(card, 144, gap=36).funnel("mean over\nall voxels").cells(MEANS, "$C$").layer("$W_1$, relu")
    row.arrow().cells(hidden, "$C/r$", height=28, span=(0, hidden.max())).layer("$W_2$", width=62).sign(SIGMOID)
    result(row.bars(gate, "a gate per channel"), 32, TIMES, T1 * gate[0])
    return card


def eca() -> Card:
    """Efficient channel attention."""
    card = Card(1060, 270, "Efficient channel attention", NOTE)
    mechanism = learnt("eca")
    gate = flat(mechanism.channel_gate(channels()))
    row = source(card, 144, gap=46).funnel("mean over\nall voxels").cells(MEANS)
    card.text(row.x + 66, 74, "convolution along the channels", size=9.5, color=BLUE)
    row.fan(np.log(gate / (1 - gate)), length=132).sign(SIGMOID)
    result(row.bars(gate, "a gate per channel"), 32, TIMES, T1 * gate[0])
    return card


def cbam() -> Card:
    """Convolutional block attention."""
    card, top, low = Card(1060, 436, "Convolutional block attention", NOTE), 310, 108
    x = channels()
    mechanism = learnt("cbam", reduction=4, norm="batch")
    channel = mechanism.channel_gate(x)
    spatial = seen(mechanism.spatial_gate(x, channel)[0, 0])
    gated = (x * channel).detach()
    mean, largest = seen(gated.mean(1)[0]), seen(gated.amax(1)[0])
    end, between = card.width - 207, top - 104
    row = source(card, top, gap=32).funnel("mean and max\nover all voxels", length=122, narrow=60)
    row.cells(MEANS, span=(0, 1)).move(5).cells(MAXIMA, span=stretch(MAXIMA.numpy()))
    row.layer("shared MLP", width=86).sign(PLUS).sign(SIGMOID).bars(flat(channel), "a gate per channel")
    result(row, top - 90, TIMES, T1 * flat(channel)[0], words="$x_1$")
    card.arrow((961, top - 68), (961, between), (54, between), (54, low), (82, low))
    card.volume(86, low - MIDDLE + 8, mean, cmap=COOL, span=stretch(mean), scale=1.7)
    card.volume(112, low - MIDDLE - 10, largest, cmap=COOL, span=stretch(largest), scale=1.7)
    card.text(158, low - 64, "mean and max over the channels", size=9.5, color=TEAL)
    row = Row(card, 250, low, gap=44).layer("conv $7^3$", width=70).sign(SIGMOID)
    row.volume(spatial, "a gate per voxel", span=stretch(spatial))
    card.arrow((row.x + 4, low), (end - 14, low))
    card.sign(end, low, TIMES)
    card.arrow((end, between), (end, low + 13))
    gated = T1 * flat(channel)[0] * spatial
    output(card, end + 11, low, gated, span=(0, gated.max()))
    return card


def bam() -> Card:
    """Bottleneck attention."""
    card, y = Card(1060, 400, "Bottleneck attention", NOTE), 208
    x = channels()
    mechanism = learnt("bam", seed=1, reduction=4)
    channel, spatial = mechanism.channel_map(x), mechanism.spatial_map(x)
    gate = seen(torch.sigmoid(channel + spatial)[0, 0])
    both, spatial = seen((x.mean(1) + x.amax(1))[0]), seen(spatial[0, 0])
    upper, lower = fork(source(card, y), y + 82, y - 72, gap=24)
    upper.funnel("mean over\nall voxels").cells(MEANS).layer("MLP", width=62)
    upper.bars(flat(channel), "$M_c$, a value per channel", span=(-2.4, 2.4))
    lower.volume(both, "mean + max over the channels", cmap=COOL, span=stretch(both), scale=1.6)
    lower.layer("conv $7^3$,\nnorm", width=72, height=44)
    lower.volume(spatial, "$M_s$, a value per voxel", span=stretch(spatial), scale=1.6)
    row = join((upper, lower), y, PLUS, gap=22).sign(SIGMOID)
    row.volume(gate, "a gate per\nchannel and voxel", span=stretch(gate), behind=2, scale=1.6)
    result(row, 34, TIMES, T1 * gate)
    return card


def coord() -> Card:
    """Coordinate attention."""
    card, y = Card(1060, 312, "Coordinate attention", NOTE), 176
    x = channels()[0, 0]  # the channel whose profiles and gates are drawn
    profiles = [seen_line(x.mean([axis for axis in range(3) if axis != kept])) for kept in range(3)]
    gates = [seen_line(gate[0, 0].squeeze()) for gate in learnt("coord").axis_gates(channels())]
    product = np.einsum("i,j,k->ijk", *gates)
    row = source(card, y, gap=27, below=88)
    along_edges(card, 46, y - MIDDLE, profiles, TEAL)
    card.text(196, y - 62, "a mean over\nthe other axes", size=9.5, color=TEAL, ha="left")
    row.move(34).arrow()
    for profile in profiles:
        length = 1.1 * len(profile)
        card.profile(row.x, y - 18, profile, (length, 0), (0, 36), color=TEAL, span=around(profile))
        row.move(length + 2)
    row.layer("1×1 conv,\nnorm, relu", width=80, height=44).layer("1×1 conv\nper axis", width=74, height=44)
    row.sign(SIGMOID).volume(product, span=stretch(product))
    left = row.x - 2 - 1.9 * (SIZE[1] + SIZE[0] * DEPTH[0])
    along_edges(card, left, y - MIDDLE, gates, ORANGE)
    card.text(left + 51, y - 88, "a gate per channel and axis", size=9.5, color=ORANGE)
    result(row.move(34), 30, TIMES, T1 * product, below=102, span=(0, (T1 * product).max()))
    return card


def sk() -> Card:
    """Selective kernels."""
    card, y = Card(1060, 424, "Selective kernels", NOTE), 206
    x = channels()
    mechanism = learnt("sk", min_channels=8)
    convolved = mechanism.convolve(x)
    gates = mechanism.branch_gates(convolved)[0].detach()
    maps = [seen(map_[0, CHOSEN]) for map_ in convolved]
    pooled = sum(map_.mean((0, 2, 3, 4)) for map_ in convolved).detach()
    rows = fork(source(card, y), y + 84, y - 84, gap=24)
    for row, map_, words, name in zip(rows, maps, ("conv $3^3$", "conv $5^3$"), ("$U_0$", "$U_1$"), strict=True):
        row.layer(f"{words},\nnorm, relu", width=82, height=44)
        row.volume(map_, name, cmap=GREYS, span=stretch(map_), scale=1.6, behind=2)
    branch = join(rows, y, PLUS, gap=22)
    branch.funnel("mean over\nall voxels", length=92).cells(pooled, span=stretch(pooled.numpy()))
    branch.layer("$W$", width=40).layer("$W_0$, $W_1$", width=62).arrow()
    card.bars(branch.x + 3, y, flat(gates[0]), rest="#8fd0cb")
    card.text(branch.x + 50, y - 70, "softmax over the branches", size=9.5, color=ORANGE, ha="right")
    end = card.width - 207
    card.arrow((branch.x + 52, y), (end - 14, y))
    card.sign(end, y, "$\\Sigma$")
    for row, place in zip(rows, (1, -1), strict=True):
        card.arrow(
            (row.x + 4, row.y),
            (row.x + 26, row.y),
            (row.x + 26, y + 150 * place),
            (end, y + 150 * place),
            (end, y + 13 * place),
        )
    chosen = seen(mechanism(x)[0, CHOSEN])
    output(card, end + 11, y, chosen, span=stretch(chosen))
    return card


def around(values: np.ndarray) -> tuple[float, float]:
    """A span in which a profile fills the upper two thirds."""
    low, high = stretch(values)
    return low - (high - low) / 2, high


def seen_line(values: torch.Tensor) -> np.ndarray:
    """One axis of the block without its margin."""
    return values.detach().numpy()[4:-4]


def along_edges(card: Card, x: float, y: float, lines: list[np.ndarray], color: str, scale: float = 1.9) -> None:
    """Profiles over the axes (depth, right, up), outside the edges of a volume at (x, y)."""
    depth, right, up = (len(line) * scale for line in lines)
    back = DEPTH * depth
    card.profile(x + right, y, lines[0], back, (20, -18), color=color, span=around(lines[0]))
    card.profile(x, y, lines[1], (right, 0), (0, -30), color=color, span=around(lines[1]))
    card.profile(x + right + back[0], y + back[1], lines[2], (0, up), (30, 0), color=color, span=around(lines[2]))
