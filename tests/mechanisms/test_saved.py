"""The memory that a mechanism saves for backward, in addition to its input and output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attn3d
from tests.configurations import create, randomise
from tests.mechanisms.cases import CASES

CHANNELS, SHAPE = 128, (32, 32, 32)


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """The bytes that autograd saves, without those of inputs, output, parameters and buffers."""
    saved: list[torch.UntypedStorage] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
    given = {tensor.untyped_storage()._cdata for tensor in (*inputs, output, *module.parameters(), *module.buffers())}
    return sum({storage._cdata: storage.nbytes() for storage in saved if storage._cdata not in given}.values())


class CommonSpatialGate(nn.Module):
    """A channel gate and a spatial gate as commonly written: autograd saves the map between the two."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.mean((2, 3, 4), keepdim=True).sigmoid()
        return x * torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1).sum(1, keepdim=True).sigmoid()


def test_a_saved_map_is_counted():
    x = torch.randn(1, 32, 8, 8, 8, requires_grad=True)
    assert saved_bytes(CommonSpatialGate(), x) > x.nbytes
    assert saved_bytes(nn.Identity(), x) == 0


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.saved and name != "sk"])
def test_a_gate_saves_little_memory(name, batch):
    x = torch.randn(batch, CHANNELS, *SHAPE, requires_grad=True)
    module = randomise(create(name, spatial_dims=3, channels=CHANNELS))
    assert saved_bytes(module, x) <= CASES[name].saved * x.nbytes


def test_selective_kernels_save_no_copy_of_the_branches():
    """Only the maps of the branches are saved, without a stacked copy or a product of them."""
    module = randomise(attn3d.SelectiveKernel(3, 32))
    convolved = [torch.randn(1, 32, 16, 16, 16, requires_grad=True) for _ in range(2)]

    class Merge(nn.Module):
        def forward(self, *convolved: Tensor) -> Tensor:
            return module.merge(list(convolved), convolved[0])

    own = sum(parameter.nbytes for parameter in module.parameters())
    assert saved_bytes(Merge(), *convolved) <= own + 0.05 * convolved[0].nbytes


@pytest.mark.parametrize("name", ["cbam", "bam", "coord"])
def test_inference_needs_at_most_two_maps(name):
    x = torch.randn(1, CHANNELS, *SHAPE)
    memory = attn3d.estimate_memory(name, x.shape, training=False)
    assert memory <= 2.2 * x.nbytes
