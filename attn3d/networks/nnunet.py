"""The sites of nnU-Net's PlainConvUNet, ResidualEncoderUNet and ResidualUNet, imported on first use."""

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU

from attn3d.networks.inside import register_block
from attn3d.networks.places import concatenated
from attn3d.networks.registry import StagesByKind, register_sites

register_block(ConvDropoutNormReLU)
register_block(BasicBlockD, "conv2")
register_block(BottleneckD, "conv3")


@register_sites(PlainConvUNet)
@register_sites(ResidualEncoderUNet)
@register_sites(ResidualUNet)
def unet(network: PlainConvUNet | ResidualEncoderUNet | ResidualUNet) -> StagesByKind:
    """Returns the sites. The encoder returns a list of its stages; the decoder has a second reference to it."""
    depth = len(network.decoder.stages)
    stages = [f"encoder.stages.{stage}" for stage in range(depth + 1)]
    return {
        "encoder": stages[:-1],
        "bottleneck": stages[-1:],
        "decoder": [f"decoder.stages.{stage}" for stage in range(depth)],
        "skip": [concatenated(f"decoder.stages.{stage}") for stage in reversed(range(depth))],
    }
