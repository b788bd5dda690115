"""Convolutions for 1, 2 or 3 spatial axes, and two that are faster on a CPU than those of PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.capture import needs_plain_operators
from attn3d.layers.blockwise import runs_eagerly
from attn3d.layers.spatial import check_spatial_dims

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PLANES = 16  # output planes per run: more multiply more zeros, fewer make the matrix products narrow


def convolution(spatial_dims: int) -> type[nn.Module]:
    """Returns the convolution class for ``spatial_dims`` axes."""
    return _CONVOLUTIONS[check_spatial_dims(spatial_dims)]


class _Pointwise(nn.modules.conv._ConvNd):
    """A convolution with a kernel of size 1. On a CPU it is a matrix product, whose gradient is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, C, *S)."""
        if not torch.jit.is_scripting() and self._is_faster_as_product(x):
            return self._as_product(x)
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _is_faster_as_product(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or self.weight[0, 0].numel() > 1:
            return False
        # A compiler fuses the product to a single channel with other operators, but not those to several.
        return runs_eagerly(x) or (self.out_channels == 1 and not needs_plain_operators())

    def _as_product(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(1), self.bias
        if not x.is_contiguous():  # such as channels-last, whose format output and gradient keep
            return functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
        # With a 2-D matrix, matmul would copy the whole batch.
        y = torch.matmul(weight.expand(x.shape[0], -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
        # Under autocast, a bias in single precision would widen the product.
        return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (x.dim() - 2))


class PointwiseConvolution1d(_Pointwise, nn.Conv1d):
    """A pointwise convolution of (B, C, N)."""


class PointwiseConvolution2d(_Pointwise, nn.Conv2d):
    """A pointwise convolution of (B, C, H, W)."""


class PointwiseConvolution3d(_Pointwise, nn.Conv3d):
    """A pointwise convolution of (B, C, D, H, W)."""


_POINTWISE = {1: PointwiseConvolution1d, 2: PointwiseConvolution2d, 3: PointwiseConvolution3d}


def pointwise_convolution(spatial_dims: int) -> type[nn.Module]:
    """Returns the class of convolutions with a kernel and a stride of 1 for ``spatial_dims`` axes."""
    return _POINTWISE[check_spatial_dims(spatial_dims)]


class MapConvolution(nn.Conv3d):
    """A 3-D convolution from a few channels to one, as for a gate per voxel, that keeps the spatial sizes.

    PyTorch's CPU kernel is slow with few channels, above all in backward. On a CPU, the planes of the volume are
    therefore used as channels: one 2-D convolution with a banded weight maps a run of input planes to a run of output
    planes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, C, D, H, W)."""
        fits = x.device.type == "cpu" and self.dilation[0] == 1 and self.out_channels == 1
        # Not when compiling: the compiler would choose a layout with the planes last, for all following maps too.
        if not torch.jit.is_scripting() and runs_eagerly(x) and fits:
            return self._over_planes(x)
        return self._conv_forward(x, self.weight, self.bias)

    def _over_planes(self, x: Tensor) -> Tensor:
        batch, _, depth, height, width = x.shape
        size, around = self.kernel_size[0], int(self.padding[0])
        planes = min(_PLANES, depth)  # output planes per run
        runs = -(-depth // planes)
        padded = functional.pad(x, (0, 0, 0, 0, around, around + runs * planes - depth))
        seen = padded.unfold(2, planes + size - 1, planes)
        seen = seen.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)
        # Row i of the banded weight is the kernel after i planes of zeros: the windows over the kernel, reversed.
        kernel = functional.pad(self.weight[0], (0, 0, 0, 0, planes - 1, planes - 1))
        band = kernel.unfold(1, planes + size - 1, 1).flip(1).permute(1, 0, 4, 2, 3).flatten(1, 2)
        bias = None if self.bias is None else self.bias.expand(planes)  # of a fused norm
        y = functional.conv2d(seen, band, bias, 1, self.padding[1:], self.dilation[1:])
        return y.view(batch, 1, runs * planes, height, width)[:, :, :depth]


def map_convolution(spatial_dims: int) -> type[nn.Module]:
    """Returns the convolution class from a few channels to one for ``spatial_dims`` axes."""
    return MapConvolution if spatial_dims == 3 else convolution(spatial_dims)


def depthwise(channels: int, kernel: Sequence[int], dilation: Sequence[int] | None = None) -> nn.Module:
    """Returns a depthwise convolution that keeps the spatial sizes.

    Args:
        channels: number of channels of input and output.
        kernel: an odd size for each axis.
        dilation: one for each axis; 1 by default.
    """
    dilation = [1] * len(kernel) if dilation is None else dilation
    padding = tuple(size // 2 * step for size, step in zip(kernel, dilation, strict=True))
    return convolution(len(kernel))(
        channels, channels, tuple(kernel), padding=padding, dilation=tuple(dilation), groups=channels
    )


def along_axis(axis: int, kernel: Sequence[int]) -> list[int]:
    """Returns kernel sizes with the size of ``kernel`` along one axis and 1 along the others."""
    return [size if place == axis else 1 for place, size in enumerate(kernel)]


def is_convolution(module: nn.Module) -> bool:
    """Returns whether a module is one of PyTorch's convolutions that are not transposed."""
    return isinstance(module, tuple(_CONVOLUTIONS.values()))
