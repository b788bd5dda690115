"""Every test has its own seed, and a worker of pytest-xdist computes on one thread.

Two workers with two threads each would wait for one another.
"""

import os
import random
import signal
import zlib
from contextlib import suppress
from importlib import import_module

import numpy as np
import pytest
import torch

from attn3d.attention.patterns import PATTERNS
from attn3d.mechanisms.registry import REGISTRY
from attn3d.networks import inside, registry

pytest_plugins = ["tests.scorecard"]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--device``, the device of tensors and modules in the tests of attention and mechanisms."""
    parser.addoption("--device", default="cpu", help="device of the tensors and modules in tests")


def pytest_configure(config: pytest.Config) -> None:
    """Sets the default device before collection, because test modules create tensors on import."""
    if config.getoption("--device") != "cpu":
        torch.set_default_device(config.getoption("--device"))


@pytest.fixture
def on_the_cpu(request: pytest.FixtureRequest) -> None:
    """Skips tests of behaviour that only the CPU has."""
    if request.config.getoption("--device") != "cpu":
        pytest.skip("tests the kernel, the allocator or the captures of the CPU")


@pytest.fixture
def registries():
    """Removes what a test registers: mechanisms, patterns, sites and blocks."""
    for library in registry._LIBRARIES.values():  # which register their own before
        with suppress(ImportError):
            import_module(library)
    changed = REGISTRY, PATTERNS, registry._SITES, registry._RUNS, inside._BLOCKS
    before = [dict(one) for one in changed]
    yield
    for one, content in zip(changed, before, strict=True):
        one.clear()
        one.update(content)


@pytest.fixture
def signals():
    """Restores the handler of SIGTERM, which `attn3d predict` sets for the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def own_seed(request):
    """Seeds the global generators from the test's name, whatever ran before and on which worker."""
    _start(request.node.nodeid)


def _start(name):
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Seeds fixtures that several tests share from their own name, whichever test uses them first."""
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
