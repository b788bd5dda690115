"""Everything that depends on 1-D, 2-D or 3-D; all other files use ``spatial_dims`` and axes.

A volume is (B, C, *S) with ``spatial_dims`` sizes in S. Its tokens are (B, H, N, d), where N is the product of S, in
the order of `torch.flatten`, and C = H d is split into H heads.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.arguments import of_python
from attn3d.capture import is_captured, is_eager

_Volume = TypeVar("_Volume", Tensor, nn.Module)


def check_spatial_dims(spatial_dims: int) -> int:
    """Returns ``spatial_dims`` as an integer of Python.

    Raises:
        ValueError: if it is not 1, 2 or 3.
    """
    spatial_dims = of_python(spatial_dims)
    if type(spatial_dims) is not int or spatial_dims not in (1, 2, 3):
        raise ValueError(f"`spatial_dims` must be 1, 2 or 3, got {spatial_dims!r}")
    return spatial_dims


def axes(x: Tensor) -> list[int]:
    """Returns the spatial axes of (B, C, *S): all but the first two."""
    return list(range(2, x.dim()))


def spatial_shape(x: Tensor) -> list[int]:
    """Returns S of (B, C, *S)."""
    return list(x.shape[2:])


def is_proxy(x: Tensor) -> bool:
    """Returns whether torch.fx is tracing, which does not support sizes."""
    if not torch.jit.is_scripting():
        return isinstance(x, torch.fx.Proxy)
    return False


def sizes_are_symbols() -> bool:
    """Returns whether sizes may be symbols or tensors, as in traces, exports and compiled graphs, so that no condition
    may depend on them."""
    if not torch.jit.is_scripting():
        return is_captured()
    return False


def halve(x: Tensor) -> Tensor:
    """Max-pools every axis by 2; axes of size 1 are kept."""
    sizes = [min(2, size) for size in x.shape[2:]]
    if x.dim() == 3:
        # max_pool1d does not export with a dynamic size.
        return functional.max_pool2d(x.unsqueeze(2), [1, sizes[0]]).squeeze(2)
    if x.dim() == 4:
        return functional.max_pool2d(x, sizes)
    return functional.max_pool3d(x, sizes)


def resize(x: Tensor, shape: list[int]) -> Tensor:
    """Resizes (B, C, *S) to ``shape`` by linear interpolation."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    return functional.interpolate(x, size=shape, mode=mode, align_corners=False)


def resize_by_products(x: Tensor, shape: list[int]) -> Tensor:
    """Resizes like `resize`, by a matrix product along every axis. Its gradient is deterministic on every device."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    for axis, size in enumerate(shape, 2):
        given = x.shape[axis]
        voxels = torch.arange(given, device=x.device, dtype=dtype)
        centres = (torch.arange(size, device=x.device, dtype=dtype) + 0.5) * given / size - 0.5
        distances = (centres.clamp(min=0).minimum(voxels[-1]).unsqueeze(1) - voxels).abs()
        weights = (1 - distances).clamp(min=0).to(x.dtype)
        x = (x.movedim(axis, -1) @ weights.t()).movedim(-1, axis)
    return x


class _Tokens(torch.autograd.Function):
    """Converts (B, C, *S) to (B, N, C). The gradient has the memory format of the input.

    On a CPU at batch 1, PyTorch 2.13 and 2.14 compute wrong gradients of a preceding batch or instance norm if the
    incoming gradient is transposed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.channels_first = x.shape, x.is_contiguous()
        return x.flatten(2).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.transpose(1, 2).contiguous() if ctx.channels_first else grad.contiguous().transpose(1, 2)
        return grad.reshape(ctx.shape)  # not `unflatten`, which has no rule for batched gradients

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.flatten(2).transpose(1, 2)


class _TransformedTokens(_Tokens):
    """`_Tokens` in the form that transforms of `torch.func` require, which is slower."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.flatten(2).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape, ctx.channels_first = inputs[0].shape, inputs[0].is_contiguous()


def to_tokens(x: Tensor) -> Tensor:
    """Returns a view of (B, C, *S) as tokens (B, N, C).

    The view is a plain tensor: the metadata of subclasses such as MetaTensor describes volumes, not tokens.
    """
    if is_eager():
        return _Tokens.apply(x.as_subclass(Tensor))
    if is_captured():
        return x.flatten(2).transpose(1, 2)
    return _TransformedTokens.apply(x.as_subclass(Tensor))


def split_heads(tokens: Tensor, heads: int = 1) -> Tensor:
    """Returns a view of (B, N, H d) as (B, H, N, d)."""
    return tokens.unflatten(2, [heads, -1]).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """Returns (B, H, N, d) as (B, N, H d)."""
    return tokens.transpose(1, 2).flatten(2)


def to_volume(tokens: Tensor, shape: list[int]) -> Tensor:
    """Returns a view of (B, N, C) as (B, C, *S), where S is ``shape``; in memory it is channels-last."""
    # Not transposed first: for a batch of one, the CPU batch norm of PyTorch 2.13 computes wrong gradients from the
    # resulting strides.
    return tokens.unflatten(1, shape).movedim(-1, 1)


def broadcast_gate(gate: Tensor, x: Tensor) -> Tensor:
    """Appends an axis of size 1 to (B, C) for each spatial axis of ``x``: (B, C, 1, ..)."""
    for _ in range(x.dim() - gate.dim()):
        gate = gate.unsqueeze(-1)
    return gate


def keep_format(y: Tensor, x: Tensor) -> Tensor:
    """Returns ``y`` in the dtype of ``x``, channels-last if ``x`` is, and contiguous otherwise."""
    y = y.to(x.dtype)
    if not x.is_contiguous() and x.stride(1) == 1:  # `vmap` has no memory formats
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()


def central_voxel(x: Tensor) -> Tensor:
    """Returns the flat index of the central voxel of (B, C, *S), (1,)."""
    index = 0
    for size in x.shape[2:]:
        index = index * size + size // 2
    return torch.tensor([index], device=x.device)


def to_channels_last(volume: _Volume) -> _Volume:
    """Converts a tensor (B, C, D, H, W) or a 3-D network to channels-last memory format."""
    return volume.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # modules have it too
