"""Draws the figures of the mechanisms: ``python docs/figures.py [NAME ..]`` writes docs/figures/NAME.svg."""

import sys
from pathlib import Path

from drawing import context, gates, weights

import attn3d

FOLDER = Path(__file__).parent / "figures"


def figure(name: str):
    """The drawing of its own that a mechanism has, or what it weighs."""
    for drawings in (gates, context):
        if hasattr(drawings, name):
            return getattr(drawings, name)()
    return weights.drawn(name)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or attn3d.list_attention():
        figure(name).save(FOLDER / f"{name}.svg")
