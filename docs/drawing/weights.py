"""The figure of a mechanism that has no drawing of its own: x, what it weighs x with, y."""

import torch
from torch.nn.functional import interpolate

from drawing.anatomy import SIZE, channels, index, learnt, seen
from drawing.card import DEPTH, ORANGE, Card
from drawing.context import VOXEL, mark
from drawing.parts import MIDDLE, NOTE, flat, output, source, stretch

WORDS = {
    "channel": "a weight per channel",
    "spatial": "a weight per voxel",
    "gate": "a weight per channel\nand voxel",
    "query": "what the marked voxel sees",
    "affinity": "which channels\neach channel sees",
}


def drawn(name: str) -> Card:
    """What `attention_weights` says after a moment of training, from left to right."""
    y, x = 144, channels()
    mechanism = learnt(name)
    card = Card(1060, 270, type(mechanism).__name__, NOTE)
    found = mechanism.attention_weights(x, index(VOXEL))
    row = source(card, y, gap=40).layer(name, width=110, height=44)
    for kind, weights in found.items():
        if kind == "channel":
            row.bars(flat(weights), WORDS[kind], span=stretch(flat(weights).clip(0))).move(24)
        elif kind == "affinity":
            row.arrow()
            card.matrix(row.x + 8, y - 44, weights[0].detach().numpy(), size=88, span=stretch(flat(weights)))
            card.text(row.x + 52, y - 66, WORDS[kind], size=9.5, color=ORANGE)
            row.move(112)
        else:
            shown = weights.detach().flatten(1, -4)[:, :1]
            shown = seen(interpolate(shown, size=x.shape[2:], mode="nearest")[0, 0])  # that of pooled keys is coarser
            row.volume(shown, WORDS[kind], span=stretch(shown, 0.98), behind=2 if kind == "gate" else 0)
            if kind == "query":
                mark(card, row.x - 2 - 1.9 * (SIZE[1] + SIZE[0] * DEPTH[0]), y - MIDDLE)
    with torch.no_grad():
        result = seen(mechanism(x)[0, 0])
    output(card, row.x, y, result, span=stretch(result, 0.99))
    return card
