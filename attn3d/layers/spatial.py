"""What 1-D, 2-D and 3-D mean; every other file speaks of ``spatial_dims`` and of axes.

A volume is (B, C, *S) with ``spatial_dims`` sizes in S; its tokens are (B, H, N, d), N the product of S, in the
order of `torch.flatten`, and C = H d split over H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.capture import is_captured, needs_plain_operators

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PLANES = 16  # that a run gives; more waste products with zeros, fewer leave the matrix products narrow


def check_spatial_dims(spatial_dims: int) -> int:
    """``spatial_dims`` if it is 1, 2 or 3.

    Raises:
        ValueError: otherwise.
    """
    if spatial_dims not in _CONVOLUTIONS:
        raise ValueError(f"`spatial_dims` must be 1, 2 or 3, got {spatial_dims!r}")
    return spatial_dims


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
        if not torch.jit.is_scripting():
            # A compiler would lay the planes last, as channels, and with them all maps that are computed from these.
            if x.device.type == "cpu" and not (needs_plain_operators() or torch.compiler.is_compiling()):
                if self.dilation[0] == 1:
                    return self._over_planes(x)
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _over_planes(self, x: Tensor) -> Tensor:
        batch, _, depth, height, width = x.shape
        size, around = self.kernel_size[0], self.padding[0]
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


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's convolutions, not transposed."""
    return isinstance(module, tuple(_CONVOLUTIONS.values()))


def axes(x: Tensor) -> list[int]:
    """The spatial axes of (B, C, *S): all but the first two."""
    return list(range(2, x.dim()))


def spatial_shape(x: Tensor) -> list[int]:
    """S of (B, C, *S)."""
    return list(x.shape[2:])


def halve(x: Tensor) -> Tensor:
    """Max-pools every axis by 2; an axis of size 1 stays."""
    sizes = [min(2, size) for size in x.shape[2:]]
    if x.dim() == 3:
        # Not in one dimension: that operator does not export with a dynamic size.
        return functional.max_pool2d(x.unsqueeze(2), [1, sizes[0]]).squeeze(2)
    if x.dim() == 4:
        return functional.max_pool2d(x, sizes)
    return functional.max_pool3d(x, sizes)


def resize(x: Tensor, shape: list[int]) -> Tensor:
    """(B, C, *S) brought to ``shape`` by linear interpolation."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    return functional.interpolate(x, size=shape, mode=mode, align_corners=False)


class _Tokens(torch.autograd.Function):
    """(B, C, *S) as (B, N, C). The gradient comes back in the memory format of the input.

    PyTorch 2.13 and 2.14 compute wrong gradients of a batch or instance norm in front, on a CPU at batch 1, where what
    comes back is transposed.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.shape, ctx.channels_first = x.shape, x.is_contiguous()
        return x.flatten(2).transpose(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.transpose(1, 2)
        return (grad.contiguous() if ctx.channels_first else grad).unflatten(2, ctx.shape[2:])


def to_tokens(x: Tensor) -> Tensor:
    """A view of (B, C, *S) as tokens (B, N, C), plain tensors: what a subclass says of a volume is not true of them."""
    return x.flatten(2).transpose(1, 2) if is_captured() else _Tokens.apply(x.as_subclass(Tensor))


def split_heads(tokens: Tensor, heads: int = 1) -> Tensor:
    """A view of (B, N, H d) as (B, H, N, d)."""
    return tokens.unflatten(2, [heads, -1]).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """(B, H, N, d) as (B, N, H d)."""
    return tokens.transpose(1, 2).flatten(2)


def to_volume(tokens: Tensor, shape: list[int]) -> Tensor:
    """A view of (B, N, C) as (B, C, *S), S being ``shape``; in memory it is channels-last."""
    # Not transposed first: of a batch of one that gives strides from which the CPU batch norm of PyTorch 2.13
    # computes wrong gradients.
    return tokens.unflatten(1, shape).movedim(-1, 1)


def broadcast_gate(gate: Tensor, x: Tensor) -> Tensor:
    """(B, C) with a size of 1 for each spatial axis of ``x``: (B, C, 1, ..)."""
    for _ in range(x.dim() - gate.dim()):
        gate = gate.unsqueeze(-1)
    return gate


def keep_format(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the dtype and the memory format of ``x``, whose shape it has."""
    y = y.to(x.dtype)
    if x.is_contiguous():
        return y.contiguous()
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return y.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return y.contiguous(memory_format=torch.channels_last_3d)
    return y.contiguous()


def central_voxel(x: Tensor) -> Tensor:
    """The flat index of the voxel in the middle of (B, C, *S), (1,)."""
    index = 0
    for size in x.shape[2:]:
        index = index * size + size // 2
    return torch.tensor([index], device=x.device)
