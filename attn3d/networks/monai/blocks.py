"""The convolutional blocks of MONAI, and the modules that end their residual branches."""

from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.blocks.mednext_block import MedNeXtBlock
from monai.networks.blocks.regunet_block import RegistrationResidualConvBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.blocks.squeeze_and_excitation import SEBlock
from monai.networks.nets.ahnet import Bottleneck3x3x1, Pseudo3DLayer
from monai.networks.nets.attentionunet import ConvBlock
from monai.networks.nets.basic_unet import TwoConv
from monai.networks.nets.densenet import _DenseLayer
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from monai.networks.nets.efficientnet import MBConvBlock
from monai.networks.nets.highresnet import HighResBlock
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from monai.networks.nets.restormer import MDTATransformerBlock
from monai.networks.nets.segresnet_ds import SegResBlock
from monai.networks.nets.vnet import DownTransition, InputTransition, UpTransition

from attn3d.networks.inside import register_block


def _end_of_mbconv(block: MBConvBlock) -> str | None:
    shortcut = block.id_skip and block.stride == 1 and block.in_channels == block.out_channels
    return "_bn2" if shortcut else None


register_block(Convolution, when=lambda block: hasattr(block, "adn"))
register_block(ResidualUnit, "conv")
register_block(TwoConv)
register_block(ConvBlock)
register_block(UnetBasicBlock)
register_block(UnetResBlock, "norm2")
register_block(ResBlock, "conv2")
register_block(SegResBlock, "conv2")
register_block(InputTransition, "conv_block")
register_block(DownTransition, "ops")
register_block(UpTransition, "ops")
register_block(MedNeXtBlock, lambda block: "conv3" if block.do_res else None)
register_block(RegistrationResidualConvBlock, lambda block: f"norms.{block.num_layers - 1}")
register_block(MDTATransformerBlock, "ffn")
register_block(Bottleneck3x3x1, "bn3")
register_block(Pseudo3DLayer)
register_block(HighResBlock, "layers")
register_block(ResNetBlock, "bn2")
register_block(ResNetBottleneck, "bn3")
register_block(SEBlock, "se_layer")
register_block(_DenseLayer)
register_block(MBConvBlock, _end_of_mbconv)
register_block(DiffusionUNetResnetBlock, "conv2")
