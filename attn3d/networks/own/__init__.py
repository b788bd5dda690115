"""The attention that networks have of their own: how its weights are read, and where its tokens lie.

One file for each library. None of them imports its library: modules are known by the names of their classes.
"""

from attn3d.networks.own import monai, primus
from attn3d.networks.own.registry import OwnAttention, own_attention
from attn3d.networks.own.tokens import Tokens, over_grid

__all__ = ["OwnAttention", "Tokens", "monai", "over_grid", "own_attention", "primus"]
