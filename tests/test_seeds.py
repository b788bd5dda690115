"""Tests, and fixtures that they share, have their own seeds: random numbers do not depend on what ran before."""

import random
import zlib

import numpy as np
import pytest
import torch


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def drawn_from(name):
    """The first values of the three generators when seeded from a name."""
    seed = zlib.crc32(name.encode())
    value = torch.rand((), generator=torch.Generator().manual_seed(seed))
    return random.Random(seed).random(), float(np.random.RandomState(seed).rand()), float(value)


@pytest.fixture(scope="module")
def shared():
    return drawn()


@pytest.mark.parametrize("times", [1, 2])
def test_a_test_is_seeded_by_its_name(times, request):
    assert drawn() == drawn_from(request.node.nodeid)


def test_a_shared_fixture_has_its_own_seed(shared, request):
    assert shared == drawn_from("tests/test_seeds.py::shared")
    assert drawn() == drawn_from(request.node.nodeid)
