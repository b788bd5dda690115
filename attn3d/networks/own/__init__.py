"""The attention that networks already have: how to read its weights and the positions of its tokens.

There is one file per library. None of them imports its library: modules are recognized by their class names.
"""

from attn3d.networks.own.registry import OwnAttention, own_attention
from attn3d.networks.own.tokens import TokenLayout, over_grid

__all__ = ["OwnAttention", "TokenLayout", "over_grid", "own_attention"]
