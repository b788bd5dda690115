"""The measurements of the benchmark: times by turns, load of the machine, peaks, and saved activations."""

import pytest
import torch
from torch import nn

from examples.benchmarks import measuring


def test_functions_run_by_turns_after_a_warm_up(monkeypatch):
    calls, now = [], 0.0
    lasting = {"a": iter([9, 1, 3, 2]), "b": iter([9, 20, 10, 25])}

    def run(name):
        nonlocal now
        now += next(lasting[name])
        calls.append(name)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now)
    bench = measuring.Bench("cpu", 3, False)
    monkeypatch.setattr(bench, "_work", lambda: calls.append("w") or 0.5)
    turns = bench.turns(lambda: run("a"), lambda: run("b"))
    assert turns == ([[1, 3, 2], [20, 10, 25]], 1)  # without the first run of each
    assert "".join(calls) == measuring.WARM_UP * "w" + "ab" + "w" + "abwabwabw"


@pytest.mark.parametrize(
    ("work", "slowdown", "loaded"),
    [
        ([2, 2, 2, 2, 2], 1, False),
        ([2, 2, 9, 2, 2], 1, False),  # a single slow run is not a load
        ([2, 2.5, 2.5, 2.5, 2.5], 1.25, False),
        ([2, 3, 2, 3, 2], 1.5, True),
        ([4, 4, 4, 4, 4], 2, True),  # the best is from before
        ([1, 2, 2, 2, 2], 2, True),  # the best is among them
    ],
)
def test_a_loaded_machine_is_detected_by_a_fixed_piece_of_work(monkeypatch, work, slowdown, loaded):
    bench = measuring.Bench("cpu", 4, False)
    times = iter(measuring.WARM_UP * [2] + work)
    monkeypatch.setattr(bench, "_work", lambda: next(times))
    row = bench.time("ours", "other", lambda: None, lambda: None, 1.1)
    assert row.slowdown == slowdown
    assert row.loaded == row.saved()["loaded"] == loaded


def test_the_ratio_is_that_of_medians_and_the_spread_that_of_turns():
    row = measuring.timed("ours", "other", [2, 4, 9, 8, 1], [2, 2, 3, 2, 10])
    assert row.ratio == 4 / 2
    assert row.spread == (1, 3)  # ratios 1, 2, 3, 4 and 0.1
    assert measuring.timed("ours", "other", [3], [2]).spread == (1.5, 1.5)


def test_the_peak_counts_simultaneous_tensors():
    def run():
        for _ in range(3):
            torch.empty(2**20)  # 4 MiB, one after another
        return torch.empty(2**18), torch.empty(2**18)

    assert measuring.Bench("cpu", 1, False).peak(run) == 4 * 2**20


class Chain(nn.Module):
    """A module of a function and a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.function(x, self.layer)


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        (lambda x, layer: layer(x), 0),  # only x and the weight, which do not count
        (lambda x, layer: x.exp(), 0),  # its own output, which does not count
        (lambda x, layer: x.sigmoid().exp(), 32),  # the sigmoid
        (lambda x, layer: x.sigmoid().mul(3.0), 32),  # the sigmoid, not the product
        (lambda x, layer: layer(x.sigmoid()).exp(), 32),
        (lambda x, layer: (lambda s: s[:, :2] * s[:, 2:])(x.sigmoid()), 32),  # once, although two halves are saved
        (lambda x, layer: x.sigmoid().tanh().mul(2.0), 64),
    ],
)
def test_saved_bytes_exclude_inputs_outputs_and_parameters(function, elements):
    x = torch.randn(8, 4, requires_grad=True)
    assert measuring.saved_bytes(Chain(function), x) == 4 * elements
