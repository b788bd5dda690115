"""N x N is built by nothing but the reference backend."""

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
    """Neither forward nor backward: nothing reaches an eighth of N x N."""
    assert largest_in_training(configuration) < VOXELS**2 / 8


@pytest.mark.parametrize("configuration", ["non_local", "non_local-gaussian", "mhsa-one_head", "danet"])
def test_the_reference_method_does(configuration):
    assert largest_in_training(BY_ID[configuration], backend="math") >= VOXELS**2
