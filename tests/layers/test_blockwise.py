"""Elementwise functions of maps, computed block by block."""

import pytest
import torch

from attn3d.layers import blockwise
from attn3d.layers.blockwise import blocks, elementwise

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("most", [1, 7, 20, 1000])
def test_blocks_have_at_most_the_given_size_and_cover_the_map(monkeypatch, most, memory_format):
    monkeypatch.setattr(blockwise, "_BLOCK", most)
    monkeypatch.setattr(blockwise, "_MOST_BLOCKS", 10**6)
    x = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6).contiguous(memory_format=memory_format)
    seen = torch.zeros_like(x)
    for x_block, seen_block in blocks([x, seen]):
        assert x_block.numel() <= most
        assert x_block.shape == seen_block.shape
        seen_block.add_(x_block + 1)
    torch.testing.assert_close(seen, x + 1)


def test_blocks_are_contiguous_in_memory(monkeypatch):
    monkeypatch.setattr(blockwise, "_BLOCK", 64)
    for memory_format in FORMATS.values():
        x = torch.zeros(2, 4, 4, 4, 4).contiguous(memory_format=memory_format)
        for (block,) in blocks([x]):
            extent = 1 + sum((size - 1) * step for size, step in zip(block.shape, block.stride(), strict=True))
            assert extent == block.numel()


def test_tensors_that_broadcast_are_cut_with_the_map(monkeypatch):
    monkeypatch.setattr(blockwise, "_BLOCK", 3)
    x, a = torch.randn(1, 4, 3, 2), torch.randn(1, 4, 1, 1)
    for x_block, product, a_block in blocks([x, x * a, a]):
        torch.testing.assert_close(x_block * a_block, product)


def test_maps_are_cut_into_a_bounded_number_of_blocks():
    """Otherwise an estimate with a large fake map would take long."""
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert sum(1 for _ in blocks([torch.empty(1, 64, 256, 256, 256)])) <= 2 * blockwise._MOST_BLOCKS


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_a_function_by_blocks_equals_the_function(monkeypatch, memory_format):
    monkeypatch.setattr(blockwise, "_BLOCK", 11)

    def function(x, a, b):
        return torch.tanh(x * a) + b * x

    x = torch.randn(2, 3, 4, 3, 2, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    a = torch.randn(1, 3, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    y, weight = elementwise(function, x, a, b), torch.randn(2, 3, 4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(y, function(x, a, b))
    assert y.is_contiguous(memory_format=memory_format)
    grads = torch.autograd.grad(y, [x, a, b], weight)
    torch.testing.assert_close(grads, torch.autograd.grad(function(x, a, b), [x, a, b], weight))
    assert grads[0].is_contiguous(memory_format=memory_format)
