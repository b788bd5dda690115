"""The networks of the tests, as small as possible but with every kind of site."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from monai.networks.nets.restormer import Restormer
from monai.networks.nets.unet import CheckpointUNet
from monai.networks.nets.vista3d import ClassMappingClassify, PointMappingSAM
from torch import Tensor, nn

EVERY_KIND = "encoder decoder bottleneck skip block residual conv"
NO_RESIDUAL = "encoder decoder bottleneck skip block conv"
ENCODER = "encoder bottleneck block residual conv"


@dataclass(frozen=True)
class Configuration:
    """A network in 2-D or 3-D.

    Attributes:
        name: the name of the network, and what is special about it.
        dims: number of spatial axes.
        build: ``dims -> network``.
        size: size of the image along every axis.
        kinds: the kinds of its sites.
        channels: channels of the image.
        heavy: whether its widths are fixed and large, so that only shapes are tested, on the meta device.
        pickles: whether the plain network can be pickled.
        call: how to run it on an image.
    """

    name: str
    dims: int
    build: Callable[[int], nn.Module]
    size: int
    kinds: str
    channels: int
    heavy: bool
    pickles: bool
    call: Callable[[nn.Module, Tensor], Any]

    @property
    def id(self) -> str:
        return f"{self.name}-{self.dims}"

    @property
    def device(self) -> torch.device:
        return torch.device("meta" if self.heavy else "cpu")

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build(self.dims).to(self.device)

    def image(self, batch: int = 1) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(batch, self.channels, *[self.size] * self.dims, device=self.device)


def _network(
    name: str,
    build: Callable[[int], nn.Module],
    size: int = 8,
    kinds: str = EVERY_KIND,
    *,
    dims: tuple[int, ...] = (2, 3),
    channels: int = 1,
    heavy: tuple[int, ...] = (),
    pickles: bool = True,
    call: Callable[[nn.Module, Tensor], Any] = lambda net, x: net(x),
) -> list[Configuration]:
    return [Configuration(name, d, build, size, kinds, channels, d in heavy, pickles, call) for d in dims]


def _dynunet(dims: int, **options: Any) -> nn.Module:
    kernels, strides = [3, 3, 3], [1, 2, 2]
    return nets.DynUNet(dims, 1, 2, kernels, strides, strides[1:], filters=[4, 8, 8], **options)


def _vista3d(dims: int) -> nn.Module:
    encoder = nets.SegResNetDS2(dims, 8, 1, 8, blocks_down=(1, 1), norm="instance")
    return nets.VISTA3D(encoder, ClassMappingClassify(4, 8), PointMappingSAM(8, n_classes=4, last_supported=2))


def _dints(dims: int) -> nn.Module:
    space = nets.TopologySearch(channel_mul=0.125, num_blocks=1, num_depths=2, spatial_dims=dims)
    return nets.DiNTS(space, 1, 2, spatial_dims=dims)


def _diffusion(dims: int) -> nn.Module:
    net = nets.DiffusionModelUNet(dims, 1, 1, (1, 1), (4, 8), (False, True), norm_num_groups=4, num_head_channels=4)
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a layer of zeros would hide the layers before it
            nn.init.normal_(parameter)
    return net


def _segresnet(dims: int, **options: Any) -> nn.Module:
    return nets.SegResNet(dims, 8, blocks_down=(1, 1, 1), blocks_up=(1, 1), **options)


_WIDTHS = (4, 4, 8, 8, 8, 4)
_SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "norm_name": "batch"}
_UNETR = {"feature_size": 4, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2, "norm_name": "batch"}
_FLEXIBLE = {"decoder_channels": (8, 8, 8, 8, 8)}
_MEDNEXT = {"blocks_down": (1, 1), "blocks_bottleneck": 1, "blocks_up": (1, 1), "use_residual_connection": True}
_HIGHRES = (
    {"n_features": 4, "kernel_size": 3},
    {"n_features": 8, "kernels": (3, 3), "repeat": 2},
    {"n_features": 8, "kernel_size": 1},
    {"kernel_size": 1},
)

CONFIGURATIONS = [
    *_network("UNet", lambda d: nets.UNet(d, 1, 2, (4, 8, 8), (2, 2), num_res_units=2)),
    *_network("UNet plain", lambda d: nets.UNet(d, 1, 2, (4, 8, 8), (2, 2), norm="batch"), kinds=NO_RESIDUAL),
    *_network("CheckpointUNet", lambda d: CheckpointUNet(d, 1, 2, (4, 8, 8), (2, 2)), kinds=NO_RESIDUAL),
    *_network("AttentionUnet", lambda d: nets.AttentionUnet(d, 1, 2, (4, 8, 8), (2, 2)), kinds=NO_RESIDUAL),
    *_network("BasicUNet", lambda d: nets.BasicUNet(d, 1, 2, _WIDTHS, norm="batch"), 16, NO_RESIDUAL),
    *_network("BasicUNetPlusPlus", lambda d: nets.BasicUNetPlusPlus(d, 1, 2, _WIDTHS, norm="batch"), 16, NO_RESIDUAL),
    *_network("DynUNet", _dynunet, kinds=NO_RESIDUAL),
    *_network("DynUNet residual", lambda d: _dynunet(d, res_block=True)),
    *_network("DynUNet deep supervision", lambda d: _dynunet(d, deep_supervision=True), kinds=NO_RESIDUAL),
    *_network("SegResNet", _segresnet),
    *_network(
        "SegResNetVAE",
        lambda d: nets.SegResNetVAE(
            (8,) * d, spatial_dims=d, vae_nz=4, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)
        ),
    ),
    *_network("SegResNetDS", lambda d: nets.SegResNetDS(d, 4, blocks_down=(1, 1, 1), dsdepth=2)),
    *_network("SegResNetDS2", lambda d: nets.SegResNetDS2(d, 4, blocks_down=(1, 1))),
    *_network("VISTA3D", _vista3d, dims=(3,), call=lambda net, x: net.image_encoder(x)),
    *_network("UNETR", lambda d: nets.UNETR(1, 2, 32, spatial_dims=d, **_UNETR), 32, dims=(2,)),
    *_network("UNETR", lambda d: nets.UNETR(1, 2, 16, spatial_dims=d, **_UNETR), 16, dims=(3,)),
    *_network("SwinUNETR", lambda d: nets.SwinUNETR(1, 2, spatial_dims=d, **_SWIN), 32, heavy=(3,)),
    *_network("VNet", lambda d: nets.VNet(d, 1, 2), 16, heavy=(3,)),
    *_network(
        "FlexibleUNet resnet",
        lambda d: nets.FlexibleUNet(1, 2, "resnet10", spatial_dims=d, **_FLEXIBLE),
        32,
        heavy=(3,),
    ),
    *_network(
        "FlexibleUNet efficientnet",
        lambda d: nets.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=d, **_FLEXIBLE),
        32,
        heavy=(3,),
    ),
    *_network("MedNeXt", lambda d: nets.MedNeXt(d, 4, kernel_size=3, **_MEDNEXT)),
    *_network("RegUNet", lambda d: nets.RegUNet(d, 1, 4, 2, extract_levels=(0, 2), out_channels=d)),
    *_network("LocalNet", lambda d: nets.LocalNet(d, 1, 4, (0, 2), out_channels=d)),
    *_network(
        "VoxelMorphUNet", lambda d: nets.VoxelMorphUNet(d, 2, 4, (4, 4, 4, 4), (4,)), kinds=NO_RESIDUAL, channels=2
    ),
    *_network("Restormer", lambda d: Restormer(d, 1, 2, 8, (1, 1, 1), (1, 1, 1), num_refinement_blocks=1)),
    *_network("AHNet", lambda d: nets.AHNet((1, 1, 1, 1), d, psp_block_num=0), 64, heavy=(2, 3)),
    *_network("DiNTS", _dints, kinds="encoder decoder", pickles=False),
    *_network("HighResNet", lambda d: nets.HighResNet(d, layer_params=_HIGHRES), kinds="encoder block residual conv"),
    *_network("ResNet", lambda d: nets.ResNet("bottleneck", [1] * 4, [4] * 4, d, 1, num_classes=2), 32, ENCODER),
    *_network(
        "SENet",
        lambda d: nets.SENet(d, 1, "se_resnet_bottleneck", [1] * 4, 1, 16, num_classes=2),
        64,
        ENCODER,
        heavy=(2, 3),
    ),
    *_network(
        "DenseNet", lambda d: nets.DenseNet(d, 1, 2, 4, 4, (2, 2), act="leakyrelu"), 16, "encoder bottleneck block"
    ),
    *_network(
        "EfficientNet",
        lambda d: nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=d, in_channels=1, num_classes=2),
        32,
        "encoder bottleneck block residual",
        heavy=(3,),
    ),
    *_network("Regressor", lambda d: nets.Regressor((1, *[8] * d), (2,), (4, 8), (2, 2)), 8, ENCODER),
    *_network(
        "AutoEncoder",
        lambda d: nets.AutoEncoder(d, 1, 1, (4, 8), (2, 2), inter_channels=[8], num_res_units=1),
        8,
        "encoder decoder bottleneck block residual conv",
    ),
    *_network(
        "DiffusionModelUNet",
        _diffusion,
        8,
        EVERY_KIND,
        call=lambda net, x: net(x, torch.zeros(len(x))),
    ),
]
