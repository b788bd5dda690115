"""The sites of ResNet, SENet, DenseNet, EfficientNet and Regressor; and of HighResNet, which has one resolution."""

from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.efficientnet import EfficientNet
from monai.networks.nets.highresnet import HighResNet
from monai.networks.nets.regressor import Regressor
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.senet import SENet

from attn3d.capture import unwrapped
from attn3d.networks.registry import StagesByKind, register_sites


def _encoder(paths: list[str]) -> StagesByKind:
    return {"encoder": paths, "bottleneck": paths[-1:]}


for _network in (ResNet, SENet):
    register_sites(_network, _encoder(["layer1", "layer2", "layer3", "layer4"]))


@register_sites(DenseNet)
def densenet(network: DenseNet) -> StagesByKind:
    """A stage is a dense block."""
    return _encoder(
        [f"features.{name}" for name, _ in unwrapped(network.features).named_children() if "denseblock" in name]
    )


@register_sites(EfficientNet)
def efficientnet(network: EfficientNet) -> StagesByKind:
    """A stage is a stack of equal blocks."""
    return _encoder([f"_blocks.{stage}" for stage in range(len(network._blocks_args))])


@register_sites(Regressor)
def regressor(network: Regressor) -> StagesByKind:
    """A stage is a layer."""
    return _encoder([f"net.layer_{stage}" for stage in range(len(network.channels))])


@register_sites(HighResNet)
def highresnet(network: HighResNet) -> StagesByKind:
    """Returns all blocks except the last, whose output is the logits."""
    names = [name for name, _ in unwrapped(network.blocks).named_children() if name.isdigit()]
    return {"encoder": [f"blocks.{name}" for name in names[:-1]]}
