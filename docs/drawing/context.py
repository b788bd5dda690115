"""Figures of the mechanisms in which voxels or channels look at each other: gc, non_local, mhsa, danet."""

import torch

from drawing.anatomy import MARGIN, SIZE, channels, index, learnt, seen
from drawing.card import DEPTH, FAINT, ORANGE, TEAL, WARM, Card
from drawing.parts import MIDDLE, PLUS, T1, flat, fork, join, output, result, source, stretch
from drawing.row import Row

VOXEL = (0, 36, 20)  # the one whose weights are drawn, on the face in front
WEIGHTS = "anatomy: MNI152 T1  ·  weights: learnt on it in 40 steps"


def mark(card: Card, x: float, y: float, scale: float = 1.9) -> None:
    """The voxel on a volume whose lower left front corner is (x, y)."""
    card.cross(x + scale * (VOXEL[1] + 0.5), y + scale * (VOXEL[2] + 0.5))


def attended(mechanism: torch.nn.Module, channel: int = 0) -> dict:
    """A channel of what it gives for every other voxel, as arguments of `output`."""
    with torch.no_grad():
        y = mechanism(channels()[..., ::2, ::2, ::2])[0, channel].numpy()
    values = y[(slice(MARGIN // 2, -MARGIN // 2),) * 3]
    return {"values": values, "scale": 3.8, "span": stretch(values)}


def gc() -> Card:
    """Global context."""
    card, y = Card(1060, 290, "Global context", WEIGHTS), 152
    x = channels()
    mechanism = learnt("gc", reduction=4)
    weights = mechanism.attention_weights(x)
    alpha, context = seen(weights["spatial"][0, 0]), flat(weights["channel"])
    pooled = (x * weights["spatial"]).sum((0, 2, 3, 4)).detach()
    row = source(card, y, gap=22).layer("1×1×1\nconv", width=52, height=44).layer("softmax", role="orange", width=64)
    row.volume(alpha, "$\\alpha$, a weight per voxel", scale=1.6, span=stretch(alpha))
    begin = row.x
    row.funnel("weighted\nmean", length=88).cells(pooled, span=stretch(pooled.numpy()))
    row.layer("$W_1$, norm,\nrelu", width=74, height=44).layer("$W_2$", width=40)
    row.bars(context, "to all voxels", span=(-0.6, 0.6))
    card.arrow((begin + 50, 34), (begin + 50, y - 45), color=TEAL)
    result(row, 34, PLUS, T1 + context[0], span=stretch(T1 + context[0]))
    return card


def non_local() -> Card:
    """Non-local blocks."""
    card, y = Card(1060, 340, "Non-local block", WEIGHTS), 190
    mechanism = learnt("non_local", seed=4, variant="paper")
    weights = seen(mechanism.attention_weights(channels(), index(VOXEL))["query"][0, 0, 0])
    row = source(card, y)
    mark(card, 46, y - MIDDLE)
    upper, lower = fork(row, y + 62, y - 82, gap=34)
    middle = Row(card, lower.x, y, gap=34)
    for branch, name in ((upper, "$\\theta$"), (middle, "$\\phi$"), (lower, "$g$")):
        branch.layer(name, width=46)
    row = join((upper, middle), y, "$\\cdot$", gap=34).layer("softmax", role="orange", width=66)
    row.volume(weights, "what the marked voxel sees", span=stretch(weights, 0.97))
    mark(card, row.x - 2 - 1.9 * (SIZE[1] + SIZE[0] * DEPTH[0]), y - MIDDLE)
    row.sign("$\\Sigma$")
    card.arrow((lower.x + 4, lower.y), (row.x - 11, lower.y), (row.x - 11, y - 13))
    result(row.layer("$W$, norm", width=70), 32, PLUS, **attended(mechanism))
    return card


def mhsa() -> Card:
    """Multi-head self-attention."""
    card, y, scale = Card(1060, 316, "Multi-head self-attention", WEIGHTS), 148, 1.55
    mechanism = learnt("mhsa", num_heads=4)
    heads = seen(mechanism.attention_weights(channels(), index(VOXEL))["query"][0, :, 0])
    row = source(card, y, gap=32)
    mark(card, 46, y - MIDDLE)
    row.layer("$q$, $k$, $v$\nfor each head", width=112, height=48).layer("softmax", role="orange", width=70).arrow()
    for place, head in enumerate(heads):
        x, low = row.x + 10 + 142 * (place % 2), y + 14 - 104 * (place // 2)
        card.volume(x, low, head, cmap=WARM, span=stretch(head, 0.98), scale=scale)
        mark(card, x, low, scale)
        card.text(x + 42, low - 13, f"head {place + 1}", size=9.5, color=ORANGE)
    row.move(276).sign("$\\Sigma$").layer("$W_o$", width=50)
    card.text(row.x - 62, y - 66, "heads end to end;\nno sum with $x$", size=9.5, color=FAINT)
    output(card, row.x, y, **attended(mechanism))
    return card


def danet() -> Card:
    """Dual attention."""
    card, y = Card(1060, 400, "Dual attention", WEIGHTS), 206
    mechanism = learnt("danet", scale="1/N", reduction=4)
    found = mechanism.attention_weights(channels(), index(VOXEL))
    weights, affinity = seen(found["query"][0, 0, 0]), found["affinity"][0].detach().numpy()
    row = source(card, y)
    mark(card, 46, y - MIDDLE)
    upper, lower = fork(row, y + 78, y - 80)
    upper.layer("$q$, $k$, $v$", width=62).layer("softmax", role="orange", width=66)
    upper.volume(weights, "what the marked voxel sees", span=stretch(weights), scale=1.6)
    mark(card, upper.x - 2 - 1.6 * (SIZE[1] + SIZE[0] * DEPTH[0]), upper.y - 1.6 * MIDDLE / 1.9, 1.6)
    upper.sign("$\\Sigma$").layer("$\\alpha$", width=34)
    lower.layer("$AA^\\top$", width=62, role="teal").layer("softmax", role="orange", width=66).arrow()
    card.matrix(lower.x + 12, lower.y - 44, affinity, size=88, span=stretch(affinity))
    card.text(lower.x + 56, lower.y - 57, "which channels each channel sees", size=9.5, color=ORANGE)
    lower.x = upper.x - 106  # as the row above, where its volume ends
    lower.sign("$\\Sigma$").layer("$\\beta$", width=34)
    result(join((upper, lower), y, PLUS), 34, PLUS, **attended(mechanism))
    return card
