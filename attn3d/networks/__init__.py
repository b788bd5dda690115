"""Where attention can go in each network: sites, and no more.

What they need of MONAI is in `attn3d.networks.monai`, what they need of nnU-Net in `attn3d.networks.nnunet`.
"""

from attn3d.networks.inside import register_block
from attn3d.networks.places import KINDS, Place, concatenated, first_argument, items, joined, second_argument, summed
from attn3d.networks.registry import register_sites

__all__ = [
    "KINDS",
    "Place",
    "concatenated",
    "first_argument",
    "items",
    "joined",
    "register_block",
    "register_sites",
    "second_argument",
    "summed",
]
