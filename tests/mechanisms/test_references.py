"""Outputs and gradients of every configuration against the float64 loops of its case."""

from __future__ import annotations

import pytest
import torch

from tests.configurations import BY_ID, CONFIGURATIONS, OVER_VOXELS, build
from tests.marks import some
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close_to_reference, volume

pytestmark = pytest.mark.scorecard("math")

# (batch, channels, shape): no two sizes equal; batch 1 with as many channels as voxels along the first axis;
# axes of size 1; a single voxel; extents that dilated kernels exceed.
SHAPES = [
    (2, 6, (7,)),
    (1, 4, (4,)),
    (3, 8, (1,)),
    (1, 5, (1,)),
    (1, 12, (9,)),
    (2, 6, (3, 4)),
    (1, 4, (4, 3)),
    (3, 8, (1, 5)),
    (1, 5, (1, 1)),
    (1, 12, (5, 6)),
    (2, 6, (2, 3, 4)),
    (1, 4, (4, 3, 2)),
    (3, 8, (1, 3, 2)),
    (1, 5, (1, 1, 1)),
    (1, 12, (5, 1, 6)),
]
configurations = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda cell: cell.id)


@pytest.mark.parametrize("training", some([True, False], lambda training: not training), ids=["train", "eval"])
@pytest.mark.parametrize(
    "case",
    some(SHAPES, lambda case: SHAPES.index(case) % 2),
    ids=lambda case: "x".join(map(str, (case[0], case[1], *case[2]))),
)
@configurations
def test_output_and_gradients(configuration, case, training):
    batch, channels, shape = case
    module = build(configuration, len(shape), channels).train(training)
    x = volume(batch, channels, *shape)
    assert_close_to_reference(module, CASES[configuration.name].reference, x, configuration.options)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)], ids=str)
@configurations
def test_an_image_whose_channels_come_last_in_memory(configuration, shape):
    """As in `torch.from_numpy(image).movedim(-1, 0)[None]`: the stride of the batch is less than an image."""
    x = volume(*shape, 4).movedim(-1, 0)[None]
    module = build(configuration, len(shape), 4).train()
    assert_close_to_reference(module, CASES[configuration.name].reference, x, configuration.options)


@pytest.mark.scorecard("memory")
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)], ids=str)
@configurations
def test_a_batch_of_one_keeps_its_strides(configuration, shape):
    """PyTorch's batch norm has wrong gradients for a channels-last batch of one with another stride of the batch."""
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    x = volume(1, 4, *shape).contiguous(memory_format=formats[len(shape)])
    assert build(configuration, len(shape), 4)(x).stride() == x.stride()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "chunked", "math"])
@pytest.mark.parametrize("configuration", [*OVER_VOXELS, "non_local-gaussian"])
def test_every_backend(configuration, backend, shape):
    configuration = BY_ID[configuration]
    module = build(configuration, len(shape), 8, backend=backend).train()
    assert_close_to_reference(module, CASES[configuration.name].reference, volume(2, 8, *shape), configuration.options)
