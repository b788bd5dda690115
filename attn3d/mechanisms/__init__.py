"""The ten mechanisms, each in the file of its paper."""

from attn3d.mechanisms.bam import BAM
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.cbam import CBAM
from attn3d.mechanisms.coordinate import CoordinateAttention
from attn3d.mechanisms.dual_attention import (
    ChannelAttention,
    DualAttention,
    DualAttentionHead,
    PositionAttention,
)
from attn3d.mechanisms.efficient_channel import ECA
from attn3d.mechanisms.global_context import GlobalContext
from attn3d.mechanisms.non_local import NonLocal
from attn3d.mechanisms.selective_kernel import SelectiveKernel
from attn3d.mechanisms.self_attention import MultiHeadSelfAttention
from attn3d.mechanisms.squeeze_excitation import SqueezeExcitation

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "ChannelAttention",
    "CoordinateAttention",
    "DualAttention",
    "DualAttentionHead",
    "GlobalContext",
    "Mechanism",
    "MultiHeadSelfAttention",
    "NonLocal",
    "PositionAttention",
    "SelectiveKernel",
    "SqueezeExcitation",
]
