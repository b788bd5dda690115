"""The sites of UNETR, SwinUNETR and Restormer, where maps are (B, C, *S)."""

from monai.networks.nets.restormer import Restormer
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR

from attn3d.networks.places import concatenated, first_argument, second_argument
from attn3d.networks.registry import StagesByKind, register_sites

register_sites(
    UNETR,
    {
        "encoder": ["encoder1", "encoder2", "encoder3", "encoder4"],
        "bottleneck": [first_argument("decoder5")],
        "decoder": ["decoder5", "decoder4", "decoder3", "decoder2"],
        "skip": [second_argument(f"decoder{stage}") for stage in (2, 3, 4, 5)],
    },
)

register_sites(
    SwinUNETR,
    {
        "encoder": ["swinViT.patch_embed", *(f"swinViT.layers{stage}.0" for stage in (1, 2, 3, 4))],
        "bottleneck": ["encoder10"],
        "decoder": ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"],
        "skip": [second_argument(f"decoder{stage}") for stage in (1, 2, 3, 4, 5)],
    },
)


@register_sites(Restormer)
def restormer(network: Restormer) -> StagesByKind:
    """Returns the sites. The skips are concatenated inline."""
    stages = range(network.num_steps)
    readers = [f"reduce_channels.{stage}" for stage in stages[:-1]] + [f"decoder_levels.{stages[-1]}"]
    return {
        "encoder": [f"encoder_levels.{stage}" for stage in stages],
        "bottleneck": ["latent"],
        "decoder": [f"decoder_levels.{stage}" for stage in stages],
        "skip": [concatenated(path) for path in readers[::-1]],
    }
