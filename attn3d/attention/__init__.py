"""Attention over the tokens of a volume, in memory that grows with their number and not its square."""

from attn3d.attention.methods import attend
from attn3d.attention.pairwise import dot_product, rectified_sum
from attn3d.attention.scopes import Axial, Global, Grid, Neighborhood, PooledKeys, Scope, Window
from attn3d.attention.volume import VolumeAttention

__all__ = [
    "Axial",
    "Global",
    "Grid",
    "Neighborhood",
    "PooledKeys",
    "Scope",
    "VolumeAttention",
    "Window",
    "attend",
    "dot_product",
    "rectified_sum",
]
