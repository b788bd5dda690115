"""UNet and CheckpointUNet, AttentionUnet, BasicUNet, BasicUNetPlusPlus, DynUNet, VNet, FlexibleUNet, MedNeXt, AHNet."""

from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.ahnet import AHNet
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.efficientnet import EfficientNet
from monai.networks.nets.flexible_unet import FlexibleUNet
from monai.networks.nets.mednext import MedNeXt
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.unet import UNet
from monai.networks.nets.vnet import VNet
from torch import nn

from attn3d.capture import unwrapped
from attn3d.networks.places import concatenated, joined, second_argument, summed
from attn3d.networks.registry import StagesByKind, register_sites


def levels_of(network: nn.Module, level: str) -> tuple[list[str], str]:
    """Returns the paths of the nested levels (down, skip connection around the next level, up) and of the innermost."""
    levels = []
    while isinstance(_child(network, level), SkipConnection):
        levels.append(level)
        level = _without_checkpoint(network, f"{level}.1.submodule")
    return levels, level


def _child(network: nn.Module, level: str) -> nn.Module | None:
    child = getattr(network.get_submodule(level), "1", None)
    return None if child is None else unwrapped(child)


def _without_checkpoint(network: nn.Module, path: str) -> str:
    """Returns the path inside the activation checkpointing wrapper, if there is one."""
    return f"{path}.module" if hasattr(network.get_submodule(path), "module") else path


@register_sites(UNet)
def unet(network: UNet) -> StagesByKind:
    """Returns the sites. The topmost up layer is not a site, since its output is the logits."""
    levels, bottom = levels_of(network, "model")
    return {
        "encoder": [_without_checkpoint(network, f"{level}.0") for level in levels],
        "bottleneck": [bottom],
        "decoder": [_without_checkpoint(network, f"{level}.2") for level in levels[:0:-1]],
        "skip": [joined(f"{level}.1") for level in levels],
    }


@register_sites(AttentionUnet)
def attention_unet(network: AttentionUnet) -> StagesByKind:
    """Returns the sites of nested attention layers; the submodule of each except the last is (block, layer)."""
    layers, encoder = ["model.1"], ["model.0"]
    while isinstance(unwrapped(network.get_submodule(f"{layers[-1]}.submodule")), nn.Sequential):
        encoder.append(f"{layers[-1]}.submodule.0")
        layers.append(f"{layers[-1]}.submodule.1")
    return {
        "encoder": encoder,
        "bottleneck": [f"{layers[-1]}.submodule"],
        "decoder": [f"{layer}.merge" for layer in layers[::-1]],
        "skip": [concatenated(f"{layer}.merge", first=True) for layer in layers],
    }


@register_sites(DynUNet)
def dynunet(network: DynUNet) -> StagesByKind:
    """Returns the sites. The blocks have a second path under ``skip_layers``."""
    up = [f"upsamples.{stage}" for stage in range(len(network.upsamples))]
    return {
        "encoder": ["input_block", *(f"downsamples.{stage}" for stage in range(len(network.downsamples)))],
        "bottleneck": ["bottleneck"],
        "decoder": up,
        "skip": [second_argument(path) for path in up[::-1]],
    }


@register_sites(FlexibleUNet)
def flexible_unet(network: FlexibleUNet) -> StagesByKind:
    """Returns the sites. The last decoder block has no skip."""
    encoder, skips, backbone = [], network.skip_connect, unwrapped(network.encoder)
    if isinstance(backbone, ResNet):
        encoder = ["encoder.act", *(f"encoder.layer{stage}" for stage in range(1, 5))]
    elif isinstance(backbone, EfficientNet):
        encoder = [f"encoder._blocks.{end - 1}" for end in backbone.extract_stacks if end > 0]
    return {
        "encoder": encoder[:-1],
        "bottleneck": encoder[-1:],
        "decoder": [f"decoder.blocks.{stage}" for stage in range(len(network.decoder.blocks))],
        "skip": [second_argument(f"decoder.blocks.{stage}") for stage in reversed(range(skips))],
    }


@register_sites(MedNeXt)
def mednext(network: MedNeXt) -> StagesByKind:
    """Returns the sites. The skips are added inline, as in SegResNet."""
    stages = range(len(network.enc_stages))
    return {
        "encoder": [f"enc_stages.{stage}" for stage in stages],
        "bottleneck": ["bottleneck"],
        "decoder": [f"dec_stages.{stage}" for stage in range(len(network.dec_stages))],
        "skip": [summed(f"enc_stages.{stage}") for stage in stages],
    }


register_sites(
    BasicUNet,
    {
        "encoder": ["conv_0", "down_1", "down_2", "down_3"],
        "bottleneck": ["down_4"],
        "decoder": ["upcat_4", "upcat_3", "upcat_2", "upcat_1"],
        "skip": [second_argument(f"upcat_{level}") for level in (1, 2, 3, 4)],
    },
)

_NODES = [[f"upcat_{level}_{column}" for column in range(1, 5 - level)] for level in range(4)]

register_sites(
    BasicUNetPlusPlus,
    {
        "encoder": ["conv_0_0", "conv_1_0", "conv_2_0", "conv_3_0"],
        "bottleneck": ["conv_4_0"],
        "decoder": _NODES[::-1],
        "skip": [[second_argument(node) for node in nodes] for nodes in _NODES],
    },
)

register_sites(
    VNet,
    {
        "encoder": ["in_tr", "down_tr32", "down_tr64", "down_tr128"],
        "bottleneck": ["down_tr256"],
        "decoder": ["up_tr256", "up_tr128", "up_tr64", "up_tr32"],
        "skip": [second_argument(f"up_tr{channels}") for channels in (32, 64, 128, 256)],
    },
)

register_sites(
    AHNet,
    {
        "encoder": ["relu", "maxpool", "layer1", "layer2", "layer3"],
        "bottleneck": ["layer4"],
        "decoder": ["dense0", "dense1", "dense2", "dense3", "dense4"],
        "skip": [summed(path) for path in ("relu", "maxpool", "layer1", "layer2", "layer3")],
    },
)
