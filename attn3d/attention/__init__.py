"""Attention over the tokens of a volume, in memory that grows with their number and not its square."""

from attn3d.attention.methods import Choice, attend, choose_method
from attn3d.attention.pairwise import dot_product, rectified_sum
from attn3d.attention.scopes import Axial, Global, Grid, Neighborhood, PooledKeys, Scope, Window
from attn3d.attention.volume import VolumeAttention

__all__ = [
    "Axial",
    "Choice",
    "Global",
    "Grid",
    "Neighborhood",
    "PooledKeys",
    "Scope",
    "VolumeAttention",
    "Window",
    "attend",
    "choose_method",
    "dot_product",
    "rectified_sum",
]
