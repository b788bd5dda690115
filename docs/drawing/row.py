"""Shapes from left to right, with arrows between them."""

from typing import Self

import numpy as np

from drawing.card import BLUE, COOL, FAINT, ORANGE, TEAL, WARM, Card


class Row:
    """A row of shapes on a card; each stands behind an arrow from the one before.

    Args:
        card: to draw on.
        x: where the row begins.
        y: the height of its middle.
        gap: from one shape to the next, most of it an arrow.
    """

    def __init__(self, card: Card, x: float, y: float, gap: float = 25) -> None:
        self.card, self.x, self.y, self.gap = card, x, y, gap

    def arrow(self, gap: float | None = None) -> Self:
        """An arrow to the right."""
        gap = self.gap if gap is None else gap
        self.card.arrow((self.x + 4, self.y), (self.x + gap - 3, self.y))
        return self.move(gap)

    def move(self, gap: float) -> Self:
        """Nothing, for ``gap``."""
        self.x += gap
        return self

    def funnel(self, words: str, *, length: float = 112, narrow: float = 40) -> Self:
        """What pools, without an arrow."""
        self.card.funnel(self.x + 10, self.y, self.x + length, narrow=narrow)
        self.card.text(self.x + 8 + length / 2, self.y, words, size=9.5, color=TEAL)
        return self.move(length + 4)

    def cells(self, values, words: str = "", *, height: float = 112, cmap=COOL, **style) -> Self:
        """A vector over channels, without an arrow."""
        self.card.cells(self.x, self.y, np.asarray(values), height=height, cmap=cmap, **style)
        self.card.text(self.x + 6.5, self.y - height / 2 - 13, words, size=12, color=FAINT)
        return self.move(13)

    def layer(self, words: str, *, width: float = 74, height: float = 34, role: str = "blue") -> Self:
        """Something computed, blue when it is learnt."""
        self.arrow()
        self.card.layer(self.x + width / 2, self.y, words, width=width, height=height, role=role)
        return self.move(width)

    def sign(self, symbol: str) -> Self:
        """A function, a sum or a product."""
        self.arrow()
        self.card.sign(self.x + 11, self.y, symbol)
        return self.move(22)

    def bars(self, values, words: str = "", **style) -> Self:
        """A gate over the channels."""
        self.arrow(self.gap + 3)
        self.card.bars(self.x, self.y, np.asarray(values), **style)
        self.card.text(self.x + 22, self.y - 70, words, size=9.5, color=ORANGE)
        return self.move(48)

    def volume(self, values, words: str = "", *, scale: float = 1.9, cmap=WARM, behind: int = 0, **style) -> Self:
        """A volume, its words below it in the colour of its role."""
        self.arrow(self.gap).move(5 + 7 * behind)
        depth, right, up = (size * scale for size in values.shape)
        low = self.y - (up + 0.36 * depth) / 2
        role = {"greys": FAINT, "cool": TEAL, "warm": ORANGE}[cmap.name]
        self.card.text(self.x + right / 2, low - 7, words, size=9.5, color=role, va="top")
        self.x = self.card.volume(self.x, low, values, scale=scale, cmap=cmap, behind=behind, **style)
        return self.move(2)

    def fan(self, values, *, length: float = 120, marked: int = 6) -> Self:
        """A convolution along the channels, from a vector of 16 to another."""
        height = 112 / len(values)
        for place in range(len(values)):
            level = self.y + 56 - height * (place + 0.5)
            for other in {max(0, place - 1), place, min(len(values) - 1, place + 1)}:
                start = self.y + 56 - height * (other + 0.5)
                color, width = (BLUE, 1.6) if place == marked else ("#c9d1d9", 0.7)
                self.card.line((self.x + 1, start), (self.x + length - 1, level), color=color, width=width)
        return self.move(length).cells(values, span=(min(values) - 0.1, max(values) + 0.1))
