"""A worker of pytest-xdist computes on one thread: two workers of two threads each would wait for one another."""

import os

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
