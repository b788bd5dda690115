"""Draws the figures of the mechanisms: ``python docs/figures.py [NAME ..]`` writes docs/figures/NAME.svg."""

import sys
from pathlib import Path

from drawing import context, gates

FOLDER = Path(__file__).parent / "figures"
FIGURES = {
    draw.__name__: draw
    for draw in (
        gates.se,
        gates.eca,
        gates.cbam,
        gates.bam,
        gates.coord,
        gates.sk,
        context.gc,
        context.non_local,
        context.mhsa,
        context.danet,
    )
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]().save(FOLDER / f"{name}.svg")
