"""Convolutions for 1, 2 or 3 spatial axes, and one of a few maps to one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.layers.blockwise import runs_eagerly
from attn3d.layers.spatial import check_spatial_dims

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PLANES = 16  # that a run gives; more waste products with zeros, fewer leave the matrix products narrow


def convolution(spatial_dims: int) -> type[nn.Module]:
    """The convolution class for ``spatial_dims`` axes."""
    return _CONVOLUTIONS[check_spatial_dims(spatial_dims)]


class MapConvolution(nn.Conv3d):
    """A 3-D convolution of a few maps to one, as for a gate per voxel, whose sizes stay what they were.

    PyTorch's CPU kernel is slow with so few channels, most of all in backward. There the planes of a run stand in
    the place of channels: from the planes that it sees come the planes that it gives, by one 2-D convolution with a
    banded weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, C, D, H, W)."""
        # A compiler would lay the planes last, as channels, and with them all maps that are computed from these.
        if runs_eagerly(x) and x.device.type == "cpu" and self.dilation[0] == 1 and self.out_channels == 1:
            return self._over_planes(x)
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _over_planes(self, x: Tensor) -> Tensor:
        batch, _, depth, height, width = x.shape
        size, around = self.kernel_size[0], int(self.padding[0])
        given = min(_PLANES, depth)
        runs = -(-depth // given)
        seen = functional.pad(x, (0, 0, 0, 0, around, around + runs * given - depth)).unfold(2, given + size - 1, given)
        seen = seen.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)
        # Row i of the band is the kernel after i zeros: rows of one zero more than there is room for, end to end.
        band = functional.pad(self.weight[0], (0, 0, 0, 0, 0, given)).expand(given, -1, -1, -1, -1).transpose(0, 1)
        band = band.flatten(1, 2)[:, :-given].unflatten(1, (given, -1)).transpose(0, 1).flatten(1, 2)
        y = functional.conv2d(seen, band, None, 1, self.padding[1:], self.dilation[1:])
        return y.view(batch, 1, runs * given, height, width)[:, :, :depth]


def map_convolution(spatial_dims: int) -> type[nn.Module]:
    """The convolution class of a few maps to one, without bias, for ``spatial_dims`` axes."""
    return MapConvolution if spatial_dims == 3 else convolution(spatial_dims)


def depthwise(channels: int, kernel: Sequence[int], dilation: Sequence[int] | None = None) -> nn.Module:
    """A convolution of each channel by itself that keeps the sizes.

    Args:
        channels: of the input and of the output.
        kernel: an odd size for each axis.
        dilation: one for each axis; by default 1.
    """
    dilation = [1] * len(kernel) if dilation is None else dilation
    padding = tuple(size // 2 * step for size, step in zip(kernel, dilation, strict=True))
    return convolution(len(kernel))(
        channels, channels, tuple(kernel), padding=padding, dilation=tuple(dilation), groups=channels
    )


def along_axis(axis: int, kernel: Sequence[int]) -> list[int]:
    """The sizes of a kernel along one axis, 1 along the others."""
    return [size if place == axis else 1 for place, size in enumerate(kernel)]


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's convolutions, not transposed."""
    return isinstance(module, tuple(_CONVOLUTIONS.values()))
