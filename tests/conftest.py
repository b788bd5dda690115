"""Every test draws from a seed of its own, and a worker of pytest-xdist computes on one thread.

Two workers of two threads each would wait for one another.
"""

import os
import random
import zlib

import numpy as np
import pytest
import torch

pytest_plugins = ["tests.scorecard"]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` makes tensors and modules on a device, in tests of attention and mechanisms."""
    parser.addoption("--device", default="cpu", help="where tests make their tensors")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected, for the tensors that their modules have."""
    if config.getoption("--device") != "cpu":
        torch.set_default_device(config.getoption("--device"))


@pytest.fixture
def on_the_cpu(request: pytest.FixtureRequest) -> None:
    """For tests of what the CPU alone has."""
    if request.config.getoption("--device") != "cpu":
        pytest.skip("this is about the kernel, the allocator or the captures of the CPU")


@pytest.fixture(autouse=True)
def own_seed(request):
    """The global generators start from the test's name: what ran before, and on which worker, changes nothing."""
    _start(request.node.nodeid)


def _start(name):
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Fixtures that several tests share draw from a seed of their own too, whichever test comes first."""
    if fixturedef.scope == "function":
        return (yield)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _start(f"{fixturedef.baseid}::{fixturedef.argname}")
    try:
        return (yield)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
