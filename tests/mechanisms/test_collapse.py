"""Results do not depend on the number of dimensions, the order of the axes or the other samples of the batch."""

from __future__ import annotations

import pytest
import torch

from tests.configurations import CONFIGURATIONS, build, running_statistics
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close, volume

pytestmark = pytest.mark.scorecard("order")

CHANNELS = 6
configurations = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda cell: cell.id)


def assert_equal(actual, expected):
    assert_close(actual, expected, tolerance=1e-12)


@torch.no_grad()
def copy_statistics(source, target):
    for values, copies in zip(running_statistics(source), running_statistics(target), strict=True):
        for value, copy in zip(values, copies, strict=True):
            copy.copy_(value)


@torch.no_grad()
def collapse(configuration, module, axis):
    """The mechanism with one dimension less that equals `module` where `axis` has size 1.

    Kernels keep their centre slice along the axis.
    """
    dims = module.spatial_dims
    smaller = build(configuration, dims - 1, CHANNELS, seed=1)
    parameters = CASES[configuration.name].without_axis(list(module.parameters()), axis)
    for parameter, target in zip(parameters, smaller.parameters(), strict=True):
        if parameter.dim() > target.dim():
            parameter = parameter.select(2 + axis, parameter.shape[2 + axis] // 2)
        target.copy_(parameter.reshape(target.shape))
    copy_statistics(module, smaller)
    return smaller.train(module.training)


@pytest.mark.scorecard("collapse")
@pytest.mark.parametrize(
    "configuration",
    [cell for cell in CONFIGURATIONS if CASES[cell.name].collapses != "never"],
    ids=lambda cell: cell.id,
)
def test_an_axis_of_size_one_may_be_left_out(configuration, count_cases):
    """3-D with D, H or W of 1 equals 2-D, and 2-D with H or W of 1 equals 1-D."""
    training = CASES[configuration.name].collapses == "always"
    for shape in [(1, 3, 5), (3, 1, 5), (3, 5, 1), (1, 5), (5, 1)]:
        axis = shape.index(1)
        x = volume(2, CHANNELS, *shape)
        module = build(configuration, len(shape), CHANNELS).train(training)
        smaller = collapse(configuration, module, axis)
        assert_equal(module(x), smaller(x.squeeze(2 + axis)).unsqueeze(2 + axis))
        count_cases()


@torch.no_grad()
def permute_axes(configuration, module, order):
    """The same mechanism for a volume whose axes were permuted by `order`."""
    dims = module.spatial_dims
    permuted = build(configuration, dims, CHANNELS, seed=1)
    parameters = CASES[configuration.name].permuted(list(module.parameters()), order)
    for parameter, target in zip(parameters, permuted.parameters(), strict=True):
        if parameter.dim() == 2 + dims:
            parameter = parameter.permute(0, 1, *(2 + axis for axis in order))
        target.copy_(parameter)
    copy_statistics(module, permuted)
    return permuted.train(module.training)


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (0, 2, 1)], ids=str)
@pytest.mark.parametrize(
    "configuration",
    [cell for cell in CONFIGURATIONS if cell.form not in CASES[cell.name].in_order],
    ids=lambda cell: cell.id,
)
def test_axes_are_permuted_with_the_weights(configuration, order):
    dims = len(order)
    x = volume(2, CHANNELS, *(2, 3, 5)[:dims])
    axes = (0, 1, *(2 + axis for axis in order))
    module = build(configuration, dims, CHANNELS).train()
    permuted = permute_axes(configuration, module, order)
    assert_equal(permuted(x.permute(axes)), module(x).permute(axes))


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@configurations
def test_samples_are_independent_in_eval(configuration, spatial_dims):
    x = volume(3, CHANNELS, *(4, 2, 3)[:spatial_dims])
    module = build(configuration, spatial_dims, CHANNELS).eval()
    assert_equal(module(x), torch.cat([module(sample[None]) for sample in x]))


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@configurations
def test_the_order_of_the_batch_does_not_matter(configuration, spatial_dims):
    """Also in training, where norms use the statistics of the whole batch."""
    x = volume(3, CHANNELS, *(4, 2, 3)[:spatial_dims])
    order = [2, 0, 1]
    module = build(configuration, spatial_dims, CHANNELS).train()
    assert_equal(module(x[order]), module(x)[order])


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize(
    "configuration",
    [cell for cell in CONFIGURATIONS if CASES[cell.name].is_set and "sub_sample" not in cell.options],
    ids=lambda cell: cell.id,
)
def test_without_a_kernel_the_order_of_voxels_does_not_matter(configuration, spatial_dims):
    """This finds, for example, a mean over all axes but one.

    Batch 1, with as many channels as voxels along the first axis.
    """
    x = volume(1, CHANNELS, *(CHANNELS, 2, 3)[:spatial_dims])
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))

    def shuffle(x):
        return x.flatten(2)[:, :, order].view_as(x)

    module = build(configuration, spatial_dims, CHANNELS).eval()
    assert_equal(module(shuffle(x)), shuffle(module(x)))
