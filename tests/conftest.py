"""A worker of pytest-xdist computes on one thread: two workers of two threads each would wait for one another."""

import os

import torch

pytest_plugins = ["tests.scorecard"]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
