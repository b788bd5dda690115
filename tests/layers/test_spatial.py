"""Helpers for 1-D, 2-D and 3-D maps."""

import pytest
import torch
from torch import nn

from attn3d.layers.conv import convolution
from attn3d.layers.spatial import (
    axes,
    broadcast_gate,
    central_voxel,
    check_spatial_dims,
    halve,
    keep_format,
    resize,
    resize_by_products,
    split_heads,
    to_tokens,
    to_volume,
)

SHAPES = [(5,), (4, 3), (3, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tokens_and_volume_are_inverse(shape):
    x = torch.randn(2, 6, *shape)
    tokens = to_tokens(x)
    assert tokens.shape == (2, x[0, 0].numel(), 6)
    torch.testing.assert_close(to_volume(tokens, list(shape)), x)
    heads = split_heads(tokens, 3)
    torch.testing.assert_close(heads[:, 1, 0], x.flatten(2)[:, 2:4, 0])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_volume_of_tokens_has_channels_last_strides(batch):
    volume = to_volume(torch.randn(batch, 24, 6), [3, 4, 2])
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)
    assert volume.stride() == torch.empty(2, 6, 3, 4, 2).to(memory_format=torch.channels_last_3d).stride()


@pytest.mark.parametrize("shape", [(5,), (1, 4), (3, 1, 7)], ids=str)
def test_halving_leaves_axes_of_one(shape):
    halved = halve(torch.randn(1, 2, *shape))
    assert halved.shape[2:] == tuple(max(1, size // 2) for size in shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gates_broadcast(shape):
    x = torch.randn(2, 6, *shape)
    assert broadcast_gate(torch.rand(2, 6), x).shape == (2, 6, *(1 for _ in shape))
    assert axes(x) == list(range(2, x.dim()))
    assert x.flatten(2)[0, 0, central_voxel(x)] == x[(0, 0, *(size // 2 for size in shape))]


def test_resizing_by_products_is_linear_interpolation():
    """In half precision too, which has no integers above 2048 that are odd."""
    for dtype, shape, target in (
        (torch.float64, (3, 5, 4), [7, 2, 4]),
        (torch.float64, (6, 1), [4, 3]),
        (torch.float16, (3000,), [2900]),
    ):
        x = torch.randn(2, 3, *shape, dtype=dtype)
        found = resize_by_products(x, target)
        assert found.dtype == dtype
        exact = resize(x.double(), target)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_resizing_keeps_a_constant():
    for shape in SHAPES:
        grown = resize(torch.full((1, 2, *shape), 3.0), [2 * size + 1 for size in shape])
        torch.testing.assert_close(grown, torch.full_like(grown, 3.0))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d),
        torch.randn(2, 3, 4, 5, 6, dtype=torch.float64),
    ],
)
def test_format_is_kept(x):
    y = keep_format(torch.randn(x.movedim(1, -1).shape).movedim(-1, 1), x)
    assert y.stride() == x.stride()
    assert y.dtype == x.dtype


def test_dimensions():
    assert [convolution(dims) for dims in (1, 2, 3)] == [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    with pytest.raises(ValueError, match="`spatial_dims` must be 1, 2 or 3, got 4"):
        check_spatial_dims(4)
