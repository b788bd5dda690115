"""Attention over the tokens of a volume, in memory that grows with their number and not its square."""

from attn3d.attention.functional import BACKENDS, attend
from attn3d.attention.groups import AxisGroups
from attn3d.attention.layer import VolumeAttention
from attn3d.attention.pairwise import dot_product, rectified_sum
from attn3d.attention.patterns import (
    Axial,
    Global,
    Grid,
    Neighborhood,
    Pattern,
    PooledKeys,
    Window,
    create_pattern,
)

__all__ = [
    "BACKENDS",
    "Axial",
    "AxisGroups",
    "Global",
    "Grid",
    "Neighborhood",
    "Pattern",
    "PooledKeys",
    "VolumeAttention",
    "Window",
    "attend",
    "create_pattern",
    "dot_product",
    "rectified_sum",
]
