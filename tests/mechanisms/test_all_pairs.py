"""Only the "math" backend builds N x N scores."""

from __future__ import annotations

import pytest

from tests.configurations import BY_ID, CONFIGURATIONS, build
from tests.mechanisms.allocations import largest_output
from tests.mechanisms.parity import volume

VOXELS = 8**3


def largest_in_training(configuration, **options) -> int:
    module = build(configuration, 3, 4, **options).train()
    x = volume(1, 4, 8, 8, 8).requires_grad_()
    return largest_output(lambda: module(x).square().sum().backward())


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda cell: cell.id)
def test_no_operator_gives_all_pairs(configuration):
    """In forward and backward, no tensor reaches an eighth of N x N elements."""
    assert largest_in_training(configuration) < VOXELS**2 / 8


@pytest.mark.parametrize("configuration", ["non_local", "non_local-gaussian", "mhsa-one_head", "danet"])
def test_the_math_backend_does(configuration):
    assert largest_in_training(BY_ID[configuration], backend="math") >= VOXELS**2
