"""Attention over voxels directly after a norm.

PyTorch 2.13 and 2.14 give wrong gradients of instance norm on a CPU at batch 1 if the output gradient is transposed.
Group norm with one group for each channel is the same function, and its gradients are right.
"""

import pytest
import torch
from torch import nn

import attn3d
from tests.configurations import OVER_VOXELS

CHANNELS = 4


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("name", OVER_VOXELS)
def test_gradients_of_an_instance_norm_are_right(name, channels_last):
    torch.manual_seed(0)
    mechanism = attn3d.create_attention(name, spatial_dims=3, channels=CHANNELS).double().eval()
    for parameter in mechanism.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, CHANNELS, 3, 4, 5, dtype=torch.float64)
    upstream = torch.randn_like(x)
    found = []
    for norm in (nn.InstanceNorm3d(CHANNELS, affine=True), nn.GroupNorm(CHANNELS, CHANNELS)):
        given = x.clone(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
        net = nn.Sequential(norm.double(), mechanism)
        found.append(torch.autograd.grad(net(given.requires_grad_()), [given, norm.weight, norm.bias], upstream))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("name", OVER_VOXELS)
def test_the_gradient_has_the_memory_format_of_the_input(name, memory_format, batch):
    torch.manual_seed(0)
    mechanism = attn3d.create_attention(name, spatial_dims=3, channels=CHANNELS)
    x = torch.randn(batch, CHANNELS, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    seen = []
    inner = x.clone()
    inner.register_hook(lambda grad: seen.append(grad.is_contiguous(memory_format=memory_format)))
    mechanism(inner).square().sum().backward()
    assert seen == [True]
