"""Attention gate, arXiv 1804.03999: y = x a, a = sigma(psi relu(W_x x + W_g g)).

In the tests, the signal is every second voxel of x with its channels repeated, so that x is the only input.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import attn3d
from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, PerAxis, gated, norm_keys
from tests.references.plain import batch_norm, linear, pointwise, relu, sigmoid, volume, voxels


def signal_of(x: Tensor, channels: int) -> Tensor:
    coarse = x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))]
    if channels == x.shape[1]:
        return coarse  # a view: a copy would count as memory that the gate saves
    return torch.cat([coarse] * -(-channels // x.shape[1]), 1)[:, :channels]


class AttentionGateAlone(attn3d.AttentionGate):
    """An attention gate that is called with x only."""

    takes_signal = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, signal_of(x, self.gating_channels))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        return super().attention_weights(x, signal_of(x, self.gating_channels))


def shape_of(values):
    return [1 + max(index[axis] for index in values) for axis in range(len(next(iter(values))))]


def strided(values, weight, stride):
    """y[p] = sum over t of weight[t] x[p stride + t], zero outside."""
    result = {}
    for cell in itertools.product(
        *(range(-(-size // step)) for size, step in zip(shape_of(values), stride, strict=True))
    ):
        terms = []
        for tap in itertools.product(*(range(step) for step in stride)):
            source = tuple(p * step + t for p, step, t in zip(cell, stride, tap, strict=True))
            if source in values:
                terms.append(linear(values[source], weight[(..., *tap)]))
        result[cell] = sum(terms[1:], terms[0])
    return result


def resized(values, shape):
    """Linear interpolation between the centres of voxels, constant beyond the outermost centres."""
    given, result = shape_of(values), {}
    for index in itertools.product(*map(range, shape)):
        near = []
        for place, size, old in zip(index, shape, given, strict=True):
            centre = min(max((place + 0.5) * old / size - 0.5, 0.0), old - 1.0)
            low = min(int(centre), old - 1)
            near.append([(low, 1 - (centre - low)), (min(low + 1, old - 1), centre - low)])
        result[index] = sum(
            values[tuple(place for place, _ in corner)] * math.prod(share for _, share in corner)
            for corner in itertools.product(*near)
        )
    return result


def attention_gate(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    gating_channels=None,
    reduction=2,
    stride="auto",
    norm="auto",
):
    channels, axes = x.shape[1], x.dim() - 2
    given = gating_channels or channels
    hidden = max(channels // reduction, min(channels, 4))
    if stride == "auto":
        stride = 2 if variant == "paper" else 1
    if norm == "auto":
        norm = None if variant == "paper" else "batch"
    stride = (stride,) * axes if isinstance(stride, int) else stride

    remaining = iter(parameters)
    of_map = next(remaining).reshape(hidden, channels, *stride)
    of_signal = next(remaining).reshape(hidden, given)
    signal_bias = None if norm else next(remaining)
    psi = next(remaining).reshape(1, hidden)
    psi_bias = None if norm else next(remaining)

    def normed(values, place):
        if norm is None:
            return values
        return batch_norm(values, next(remaining), next(remaining), statistics[place], training)

    values = voxels(x)
    maps = normed(strided(values, of_map, stride), 0)
    coarse = {
        tuple(place // 2 for place in index): torch.cat([value] * given, 1)[:, :given]
        for index, value in values.items()
        if not any(place % 2 for place in index)
    }
    signals = resized(normed(pointwise(coarse, of_signal, signal_bias), 1), shape_of(maps))
    scores = pointwise({index: relu(maps[index] + signals[index]) for index in maps}, psi, psi_bias)
    gates = resized({index: sigmoid(value) for index, value in normed(scores, 2).items()}, shape_of(values))
    assert not list(remaining)
    return volume({index: value * gates[index] for index, value in values.items()})


class PlainAttentionGate(nn.Module):
    """The attention gate as it is commonly written."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.of_map = nn.Conv3d(channels, hidden, 1, bias=False)
        self.of_signal = nn.Conv3d(channels, hidden, 1, bias=False)
        self.psi = nn.Conv3d(hidden, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm3d(hidden), nn.BatchNorm3d(hidden), nn.BatchNorm3d(1)])

    def forward(self, x: Tensor) -> Tensor:
        signal = self.norms[1](self.of_signal(signal_of(x, x.shape[1])))
        signal = nn.functional.interpolate(signal, size=x.shape[2:], mode="trilinear", align_corners=False)
        hidden = torch.relu(self.norms[0](self.of_map(x)) + signal)
        return x * torch.sigmoid(self.norms[2](self.psi(hidden)))


def count(c, n, variant):
    h = max(c // 2, min(c, 4))
    return c * h * 2**n + c * h + 2 * h + 1 if variant == "paper" else 2 * c * h + h + 4 * h + 2


def keys(n):
    one, two = n * "x1", n * "x2"
    norms = ", ".join([norm_keys("map_norm", 4), norm_keys("signal_norm", 4), norm_keys("score_norm", 1)])
    return {
        "default": f"of_map.weight 4x8{one}, of_signal.weight 4x8{one}, score.weight 1x4{one}, {norms}",
        "paper": f"of_map.weight 4x8{two}, of_signal.weight 4x3{one}, of_signal.bias 4, score.weight 1x4{one},"
        " score.bias 1",
    }


def without_axis(parameters, axis):
    """On an axis of one voxel, only the first slice of a strided kernel has an effect."""
    parameters[0] = parameters[0].narrow(2 + axis, 0, 1)
    return parameters


def one_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`signal` is missing: .* gate\(x, signal\)"):
        attn3d.AttentionGate(3, 4)(torch.randn(1, 4, 2, 2, 2))


def a_signal_that_does_not_fit_is_refused() -> None:
    gate, x = attn3d.AttentionGate(3, 4, gating_channels=6), torch.randn(2, 4, 2, 2, 2)
    for shape, message in (
        ((2, 4, 2, 2, 2), "`signal` must have 6 channels, got 4"),
        ((1, 6, 2, 2, 2), "`signal` must have a batch size of 2 like `x`, got 1"),
        ((2, 6, 2, 2), "`signal` must have 5 dimensions like `x`, got 4"),
        ((2, 6, 2, 0, 2), "`signal` must have at least one voxel along every axis, got an axis of size 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            gate(x, torch.randn(shape))
    with pytest.raises(ValueError, match="`x` must have 4 channels, got 6"):
        gate(torch.randn(2, 6, 2, 2, 2), x)  # arguments in the wrong order


def any_two_sizes_are_accepted() -> None:
    """Also odd sizes and axes of one voxel, where the released code fails."""
    for variant in ("compact", "paper"):
        gate = attn3d.AttentionGate(3, 4, gating_channels=6, variant=variant).eval()
        for size, coarse in (
            ((9, 4, 1), (4, 2, 1)),
            ((1, 1, 1), (2, 3, 1)),
            ((5, 6, 7), (5, 6, 7)),
            ((2, 3, 4), (1, 9, 1)),
        ):
            assert gate(torch.randn(1, 4, *size), torch.randn(1, 6, *coarse)).shape == (1, 4, *size)


def the_last_voxel_of_an_odd_axis_has_an_effect() -> None:
    gate = attn3d.AttentionGate(1, 4, variant="paper").eval()
    x, signal = torch.randn(1, 4, 5), torch.randn(1, 4, 3)
    other = x.clone()
    other[..., -1] += 1
    assert not torch.equal(gate.spatial_gate(x, signal)[..., -1], gate.spatial_gate(other, signal)[..., -1])


def a_script_equals_the_gate() -> None:
    for variant in ("compact", "paper"):
        gate = attn3d.AttentionGate(3, 8, gating_channels=12, variant=variant).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            scripted = torch.jit.script(gate)
        for size, coarse in (((5, 7, 4), (3, 4, 2)), ((4, 4, 4), (4, 4, 4)), ((1, 1, 1), (1, 2, 1))):
            x, signal = torch.randn(2, 8, *size), torch.randn(2, 12, *coarse)
            torch.testing.assert_close(scripted(x, signal), gate(x, signal))


def the_compact_form_equals_monai() -> None:
    # Imported here, because processes that the tests start import the cases, and importing MONAI takes seconds.
    from monai.networks.nets.attentionunet import AttentionBlock

    theirs, ours = (
        AttentionBlock(3, 4, 6, 8).double().eval(),
        attn3d.AttentionGate(3, 8, gating_channels=6).double().eval(),
    )
    pairs = ((theirs.W_x, ours.of_map, ours.map_norm), (theirs.W_g, ours.of_signal, ours.signal_norm))
    for (convolution, norm), conv, own in (*pairs, (theirs.psi[:2], ours.score, ours.score_norm)):
        for parameter in (*convolution.parameters(), *norm.parameters()):
            nn.init.normal_(parameter)
        conv.weight.data.copy_(convolution.conv.weight.data)
        own.load_state_dict(norm.state_dict())
        own.running_mean -= convolution.conv.bias.data  # our convolution has no bias
    x, signal = torch.randn(2, 8, 3, 4, 5).double(), torch.randn(2, 6, 3, 4, 5).double()
    torch.testing.assert_close(ours(x, signal), theirs(g=signal, x=x))


CASE = Case(
    forms={"default": {}, "paper": {"gating_channels": 3} | PAPER},
    alone=AttentionGateAlone,
    reference=attention_gate,
    count=count,
    published=[(64, 3, PAPER | {"gating_channels": 128}, 20_545)],
    keys=keys,
    plain=PlainAttentionGate,
    floor=Floor(3, 5, "maps: x; gate: x, y", "gate: dy, x; maps again: x; input: dy, dx"),
    saved=0.1,
    time=0.8,
    weights={"spatial": (2, 1, 4, 3, 5)},
    output=gated,
    values=[{"gating_channels": 0}, {"stride": 0}, {"stride": (2, 2)}],
    kinds=[{"gating_channels": 2.0}, {"stride": 1.5}],
    drawn={
        "gating_channels": [None, 1, 5],
        "reduction": REDUCTIONS,
        "stride": PerAxis([1, 2, 3], ["auto"]),
        "norm": ["auto", *NORMS],
    },
    collapses="always",
    without_axis=without_axis,
    faults=[
        one_tensor_is_refused,
        a_signal_that_does_not_fit_is_refused,
        any_two_sizes_are_accepted,
        the_last_voxel_of_an_odd_axis_has_an_effect,
        the_compact_form_equals_monai,
        a_script_equals_the_gate,
    ],
)
