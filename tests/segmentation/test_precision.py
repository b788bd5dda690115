"""bfloat16 is used only where it is faster and agrees with float32."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attn3d.segmentation import precision
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.precision import BFloat16

LABELS = Labels.of({1: "lesion"})
REGIONS = Labels(("whole", "core"), ((1, 2), (2,)), regions_class_order=(1, 2))
PATCHES = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


class Clocked(nn.Module):
    """Takes a given number of seconds for a call in each precision, and records which one each call had.

    Args:
        seconds: for a call in float32 and one in bfloat16.
        change: what bfloat16 changes in the logits, by the number of the call.
    """

    def __init__(self, seconds, change=lambda logits, call: logits):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)
        self.seconds, self.change = seconds, change
        self.now, self.calls = 0.0, []

    def forward(self, x):
        quick = torch.is_autocast_enabled("cpu")
        self.calls.append("bfloat16" if quick else "float32")
        self.now += self.seconds[quick]
        logits = self.conv(x)
        return self.change(logits, self.calls.count("bfloat16")) if quick else logits


@pytest.fixture
def of_clocked(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "attn3d")  # whatever a command in another test has set

    def build(*arguments, labels=LABELS):
        torch.manual_seed(0)
        network = Clocked(*arguments)
        monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: network.now))
        return network, BFloat16(network, labels).eval()

    return build


@torch.inference_mode()
def results(network, count):
    return [network(PATCHES) for _ in range(count)]


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_it_is_used_after_three_calls_that_agree_and_are_faster(labels, of_clocked, caplog):
    network, either = of_clocked((1.0, 0.5), labels=labels)
    found = results(either, 5)
    assert network.calls == ["float32", "bfloat16"] * 3 + ["bfloat16"] * 2
    (exact,) = results(network, 1)
    assert all(one.equal(exact) for one in found[:3])
    assert found[3].dtype == torch.float32
    assert not found[3].equal(exact)
    torch.testing.assert_close(found[3], exact, atol=0.05, rtol=0)
    (line,) = caplog.messages
    assert "bfloat16 is used: it takes 0.50 of the time of float32" in line


def test_it_is_not_used_where_it_is_slower(of_clocked, caplog):
    network, either = of_clocked((1.0, 1.5))
    results(either, 5)
    assert network.calls == ["float32", "bfloat16"] * 3 + ["float32"] * 2
    assert caplog.messages == ["float32 is used: bfloat16 takes 1.50 of its time"]


@pytest.mark.parametrize("more", [3.0, math.nan])
@pytest.mark.parametrize("call", [1, 3])
def test_it_is_not_used_if_a_probability_differs(call, more, of_clocked, caplog):
    """One voxel of one window is enough."""

    def change(logits, count):
        if count == call:
            logits[1, 0, 2, 3, 4] += more
        return logits

    network, either = of_clocked((1.0, 0.5), change)
    found = results(either, 5)
    assert network.calls == ["float32", "bfloat16"] * call + ["float32"] * (5 - call)
    assert all(one.equal(found[0]) for one in found)
    (line,) = caplog.messages
    assert "float32 is used: in bfloat16, a probability differs by" in line


def test_a_result_that_is_not_finite_is_computed_again(of_clocked, caplog):
    def change(logits, count):
        if count == 5:
            logits[0, 1, 7, 7, 7] = math.inf
        return logits

    network, either = of_clocked((1.0, 0.5), change)
    found = results(either, 7)
    assert network.calls == ["float32", "bfloat16"] * 3 + ["bfloat16"] * 2 + ["float32"] * 3
    assert found[4].equal(found[0])
    assert found[6].equal(found[0])
    assert caplog.messages[1:] == ["float32 is used: a result in bfloat16 is not finite"]
