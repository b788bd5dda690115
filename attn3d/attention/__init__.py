"""Attention over the tokens of a volume, in memory that is linear in the number of tokens."""

from attn3d.attention.channels import ChannelwiseAttention
from attn3d.attention.features import Features, create_features
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
    PatternSpec,
    PooledKeys,
    Window,
    create_pattern,
)
from attn3d.attention.rotary import PositionSpec, RotaryPosition

__all__ = [
    "BACKENDS",
    "Axial",
    "AxisGroups",
    "ChannelwiseAttention",
    "Features",
    "Global",
    "Grid",
    "Neighborhood",
    "Pattern",
    "PatternSpec",
    "PooledKeys",
    "PositionSpec",
    "RotaryPosition",
    "VolumeAttention",
    "Window",
    "attend",
    "create_features",
    "create_pattern",
    "dot_product",
    "rectified_sum",
]
