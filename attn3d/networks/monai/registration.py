"""VoxelMorphUNet, RegUNet and LocalNet."""

from monai.networks.nets.regunet import RegUNet
from monai.networks.nets.voxelmorph import VoxelMorphUNet

from attn3d.networks.monai.unets import levels_of
from attn3d.networks.places import concatenated, joined, summed
from attn3d.networks.registry import StagesByKind, register_sites


@register_sites(VoxelMorphUNet)
def voxelmorph(network: VoxelMorphUNet) -> StagesByKind:
    """Returns the sites. The innermost module is a sequence of convolution and upsampling."""
    levels, bottom = levels_of(network, "net.0")
    return {
        "encoder": [f"{level}.0" for level in levels],
        "bottleneck": [f"{bottom}.0"],
        "decoder": [f"{level}.2" for level in levels[::-1]],
        "skip": [joined(f"{level}.1") for level in levels],
    }


@register_sites(RegUNet)
def regunet(network: RegUNet) -> StagesByKind:
    """Returns the sites. The decoder ends at the shallowest extracted level; skips above it are not used."""
    stages = range(network.depth)
    return {
        "encoder": [f"encode_convs.{stage}" for stage in stages],
        "bottleneck": ["bottom_block"],
        "decoder": [f"decode_convs.{stage}" for stage in range(len(network.decode_convs))],
        "skip": [
            concatenated(f"decode_convs.{network.depth - 1 - stage}")
            if network.concat_skip
            else summed(f"encode_convs.{stage}")
            for stage in stages[network.min_extract_level :]
        ],
    }
