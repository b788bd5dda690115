"""Attention for 3-D medical-image networks."""

from attn3d.attention import Axial, Global, Grid, Neighborhood, PooledKeys, Window, attend
from attn3d.factory import create_attention, names, register
from attn3d.mechanisms import (
    BAM,
    CBAM,
    ECA,
    ChannelAttention,
    CoordinateAttention,
    DualAttention,
    DualAttentionHead,
    GlobalContext,
    MultiHeadSelfAttention,
    NonLocal,
    PositionAttention,
    SelectiveKernel,
    SqueezeExcitation,
)

__version__ = "0.1.0"

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "Axial",
    "ChannelAttention",
    "CoordinateAttention",
    "DualAttention",
    "DualAttentionHead",
    "Global",
    "GlobalContext",
    "Grid",
    "MultiHeadSelfAttention",
    "Neighborhood",
    "NonLocal",
    "PooledKeys",
    "PositionAttention",
    "SelectiveKernel",
    "SqueezeExcitation",
    "Window",
    "attend",
    "create_attention",
    "names",
    "register",
]
