"""Any batch, size and number of channels: the output has the shape of the input and the values of the reference."""

from __future__ import annotations

import pytest
import torch

from tests.configurations import EVERY, SCOPED, build, running_statistics
from tests.marks import some
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close, volume

pytestmark = pytest.mark.scorecard("shapes")

# A single voxel, primes, very different sizes, a first axis of one.
SIZES = [(1, 1, 1), (7, 2, 3), (2, 9, 3), (1, 5, 4)]
CHANNELS = [1, 2, 3, 8, 33]


def expected(configuration, module, x):
    """The output of the reference; for patterns, that of the "math" backend."""
    if configuration in SCOPED:
        twin = build(configuration, module.spatial_dims, module.channels, backend="math").eval()
        return twin(x)
    parameters = [parameter.detach() for parameter in module.parameters()]
    reference = CASES[configuration.name].reference
    return reference(x, parameters, running_statistics(module), False, **configuration.options)


@pytest.mark.parametrize("spatial_dims", some([1, 2, 3], lambda dims: dims == 2))
@pytest.mark.parametrize("configuration", EVERY, ids=lambda cell: cell.id)
class TestEvaluation:
    def test_batches_at_every_size(self, configuration, spatial_dims, count_cases):
        module = build(configuration, spatial_dims, 4).eval()
        for size in SIZES:
            x = volume(2, 4, *size[:spatial_dims])
            values = expected(configuration, module, x)
            for batch in (0, 1, 2):
                leaf = x[:batch].clone().requires_grad_()
                found = module(leaf)
                assert found.shape == leaf.shape
                if batch:
                    assert_close(found, values[:batch])
                assert torch.autograd.grad(found.sum(), leaf)[0].shape == leaf.shape
                count_cases()

    def test_any_number_of_channels(self, configuration, spatial_dims, count_cases):
        for channels in CHANNELS:
            module = build(configuration, spatial_dims, channels).eval()
            x = volume(2, channels, *(3, 2, 2)[:spatial_dims])
            assert_close(module(x), expected(configuration, module, x))
            count_cases()


@pytest.mark.parametrize("spatial_dims", some([1, 2, 3], lambda dims: dims == 2))
@pytest.mark.parametrize("configuration", EVERY, ids=lambda cell: cell.id)
def test_a_vmap_over_volumes_that_are_channels_last(configuration, spatial_dims):
    """In a `vmap`, PyTorch does not support memory formats."""
    module = build(configuration, spatial_dims, 4).eval()
    x = volume(3, 2, *(2, 3, 2)[:spatial_dims], 4).movedim(-1, 2)
    assert_close(torch.vmap(module)(x), torch.stack([module(one) for one in x]))
