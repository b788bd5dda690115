"""What the figures have in common: where x comes in and y goes out."""

import numpy as np
import torch

from drawing.anatomy import scan, seen
from drawing.card import Card
from drawing.row import Row

NOTE = "anatomy: MNI152 T1  ·  gates: learnt on it in 40 steps"
SIGMOID, TIMES, PLUS = "$\\sigma$", "×", "+"
T1 = seen(scan()[0])
MIDDLE = 40  # of a volume, above its lower front edge


def flat(values: torch.Tensor) -> np.ndarray:
    """As an array of one axis."""
    return values.detach().flatten().numpy()


def stretch(values: np.ndarray, share: float = 1.0) -> tuple[float, float]:
    """The span from the least value to the largest of the lower ``share`` of them."""
    return float(values.min()), float(np.quantile(values, share))


def fork(row: Row, top: float, low: float, gap: float = 26) -> tuple[Row, Row]:
    """Two rows that begin at the end of one."""
    x, card = row.x + 22, row.card
    card.line((row.x + 6, row.y), (x, row.y))
    rows = []
    for y in (top, low):
        card.line((x, row.y), (x, y))
        rows.append(Row(card, x - 4, y, gap))
    return rows[0], rows[1]


def join(rows: tuple[Row, Row], y: float, symbol: str, gap: float = 26) -> Row:
    """The row that begins with a sign in which two rows end."""
    card, x = rows[0].card, max(row.x for row in rows) + 26
    card.sign(x, y, symbol)
    for row in rows:
        card.arrow((row.x + 4, row.y), (x, row.y), (x, y + (13 if row.y > y else -13)))
    return Row(card, x + 11, y, gap)


def source(card: Card, y: float, gap: float = 25, *, below: float = 56) -> Row:
    """x, its middle at the height y, and the row that begins behind it."""
    right = card.volume(46, y - MIDDLE, T1, behind=2)
    card.text(97, y - below, "$x$", size=15)
    return Row(card, right, y, gap)


def result(row: Row, low: float, symbol: str, values: np.ndarray, *, below: float = 66, **style) -> None:
    """y at the end of a row: x comes from ``below`` it by a way at the height ``low`` to the sign before y."""
    card, y, x = row.card, row.y, row.card.width - 207
    card.arrow((row.x + 4, y), (x - 14, y))
    card.sign(x, y, symbol)
    card.arrow((97, y - below), (97, low), (x, low), (x, y - 13))
    output(card, x + 11, y, values, **style)


def output(card: Card, x: float, y: float, values: np.ndarray, *, words: str = "$y$", **style) -> None:
    """y, behind an arrow from x."""
    left = card.width - 150
    card.arrow((x + 4, y), (left - 19, y))
    card.volume(left, y - MIDDLE, values, behind=2, **style)
    card.text(left + 51, y - 56, words, size=15)
