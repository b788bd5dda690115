"""The sites of each network where attention can be inserted.

`attn3d.networks.monai` has those of MONAI's networks, `attn3d.networks.nnunet` those of nnU-Net's.
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
