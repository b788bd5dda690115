"""Networks that are built like nnU-Net's, for tests without dynamic_network_architectures.

They copy what insertion and the plans files depend on: the names and arguments of the classes, the paths of the
stages, an encoder that returns a list and is also registered in the decoder, the switch for deep supervision, and an
in-place sum after a residual branch.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

LIBRARY = "dynamic_network_architectures"


class ConvDropoutNormReLU(nn.Module):
    def __init__(self, conv_op: type, wide: int, to: int, kernel: Any, stride: Any, like: dict, active: bool = True):
        super().__init__()
        padding = [(size - 1) // 2 for size in kernel]
        self.conv = conv_op(wide, to, kernel, stride, padding=padding, bias=like["conv_bias"])
        self.norm = like["norm_op"](to, **like["norm_op_kwargs"])
        steps = [self.conv, self.norm]
        if active:
            self.nonlin = like["nonlin"](**like["nonlin_kwargs"])
            steps.append(self.nonlin)
        self.all_modules = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class StackedConvBlocks(nn.Module):
    def __init__(self, count: int, conv_op: type, wide: int, to: int, kernel: Any, stride: Any, like: dict):
        super().__init__()
        one = [1] * len(kernel)
        first = ConvDropoutNormReLU(conv_op, wide, to, kernel, stride, like)
        rest = [ConvDropoutNormReLU(conv_op, to, to, kernel, one, like) for _ in range(count - 1)]
        self.convs = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class BasicBlockD(nn.Module):
    def __init__(self, conv_op: type, wide: int, to: int, kernel: Any, stride: Any, like: dict):
        super().__init__()
        self.conv1 = ConvDropoutNormReLU(conv_op, wide, to, kernel, stride, like)
        self.conv2 = ConvDropoutNormReLU(conv_op, to, to, kernel, [1] * len(kernel), like, active=False)
        self.skip = conv_op(wide, to, 1, stride)
        self.nonlin2 = like["nonlin"](**like["nonlin_kwargs"])

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        out += self.skip(x)
        return self.nonlin2(out)


class BottleneckD(BasicBlockD):
    """Only the name of the class is used."""


class StackedResidualBlocks(nn.Module):
    def __init__(self, count: int, conv_op: type, wide: int, to: int, kernel: Any, stride: Any, like: dict):
        super().__init__()
        one = [1] * len(kernel)
        first = BasicBlockD(conv_op, wide, to, kernel, stride, like)
        self.blocks = nn.Sequential(first, *(BasicBlockD(conv_op, to, to, kernel, one, like) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    def __init__(self, stem: nn.Module, stages: list[nn.Module]):
        super().__init__()
        self.stem, self.stages = stem, nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class UNetDecoder(nn.Module):
    def __init__(self, encoder: Encoder, deep_supervision: bool):
        super().__init__()
        self.deep_supervision, self.encoder = deep_supervision, encoder
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        x, outputs = skips[-1], []
        for stage, up, layer, skip in zip(self.stages, self.transpconvs, self.seg_layers, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
            outputs.insert(0, layer(x))
        return outputs if self.deep_supervision else outputs[0]


class UNet(nn.Module):
    def __init__(
        self,
        input_channels: int,
        features_per_stage: list[int],
        conv_op: type,
        kernel_sizes: Any,
        strides: Any,
        counts: list[int],
        num_classes: int,
        n_conv_per_stage_decoder: list[int],
        deep_supervision: bool,
        make_stage: type,
        like: dict,
    ):
        super().__init__()
        stem, wide, stages = nn.Identity(), input_channels, []
        if make_stage is StackedResidualBlocks:
            wide = features_per_stage[0]
            stem = StackedConvBlocks(1, conv_op, input_channels, wide, kernel_sizes[0], strides[0], like)
        for count, to, kernel, stride in zip(counts, features_per_stage, kernel_sizes, strides, strict=True):
            stage = make_stage(count, conv_op, wide, to, kernel, stride, like)
            stages.append(stage if make_stage is StackedResidualBlocks else nn.Sequential(stage))
            wide = to
        self.encoder = Encoder(stem, stages)
        self.decoder = UNetDecoder(self.encoder, deep_supervision)
        transposed = {nn.Conv2d: nn.ConvTranspose2d, nn.Conv3d: nn.ConvTranspose3d}[conv_op]
        for level, count in zip(reversed(range(len(strides) - 1)), n_conv_per_stage_decoder, strict=True):
            below, to, stride = features_per_stage[level + 1], features_per_stage[level], strides[level + 1]
            one = [1] * len(stride)
            self.decoder.transpconvs.append(transposed(below, to, stride, stride))
            self.decoder.stages.append(StackedConvBlocks(count, conv_op, 2 * to, to, kernel_sizes[level], one, like))
            self.decoder.seg_layers.append(conv_op(to, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)


class PlainConvUNet(UNet):
    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: list[int],
        conv_op: type,
        kernel_sizes: Any,
        strides: Any,
        n_conv_per_stage: list[int],
        num_classes: int,
        n_conv_per_stage_decoder: list[int],
        deep_supervision: bool = False,
        **like: Any,
    ):
        widths = features_per_stage
        net = (input_channels, widths, conv_op, kernel_sizes, strides, n_conv_per_stage, num_classes)
        super().__init__(*net, n_conv_per_stage_decoder, deep_supervision, StackedConvBlocks, like)


class ResidualEncoderUNet(UNet):
    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: list[int],
        conv_op: type,
        kernel_sizes: Any,
        strides: Any,
        n_blocks_per_stage: list[int],
        num_classes: int,
        n_conv_per_stage_decoder: list[int],
        deep_supervision: bool = False,
        **like: Any,
    ):
        widths = features_per_stage
        net = (input_channels, widths, conv_op, kernel_sizes, strides, n_blocks_per_stage, num_classes)
        super().__init__(*net, n_conv_per_stage_decoder, deep_supervision, StackedResidualBlocks, like)


class ResidualUNet(ResidualEncoderUNet):
    """Only the name of the class is used."""


def modules() -> dict[str, ModuleType]:
    """The modules of the library that attn3d imports, for ``sys.modules``."""
    contents = {
        "architectures.unet": (PlainConvUNet, ResidualEncoderUNet, ResidualUNet),
        "building_blocks.residual": (BasicBlockD, BottleneckD),
        "building_blocks.simple_conv_blocks": (ConvDropoutNormReLU, StackedConvBlocks),
    }
    made = {LIBRARY: ModuleType(LIBRARY)}
    for path, classes in contents.items():
        parent = made[LIBRARY]
        for name in path.split("."):
            full = f"{parent.__name__}.{name}"
            made.setdefault(full, ModuleType(full))
            setattr(parent, name, made[full])
            parent = made[full]
        for cls in classes:
            cls.__module__ = parent.__name__
            setattr(parent, cls.__name__, cls)
    for module in made.values():
        module.__path__ = []
    return made


def install() -> None:
    """Makes the library importable. Does not replace an installed one."""
    if LIBRARY not in sys.modules and importlib.util.find_spec(LIBRARY) is None:
        sys.modules.update(modules())
