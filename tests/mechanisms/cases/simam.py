"""SimAM, PMLR 139 (ICML 2021): y = x sigma((x - m)^2 / (4 (v + lambda)) + 1/2), by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn3d import SimAM
from tests.mechanisms.case import Case, Floor, gated
from tests.references.plain import mean, sigmoid, volume, voxels


def simam(x, parameters, statistics, training, *, regularization=1e-4):
    values = voxels(x)
    average = mean(values.values())
    squares = {index: (value - average) ** 2 for index, value in values.items()}
    variance = sum(squares.values()) / max(1, len(values) - 1)
    gates = {index: sigmoid(square / (4 * (variance + regularization)) + 0.5) for index, square in squares.items()}
    return volume({index: value * gates[index] for index, value in values.items()})


class PlainSimAM(nn.Module):
    """A gate from the squared distance to the mean."""

    def __init__(self, channels: int, regularization: float = 1e-4) -> None:
        super().__init__()
        self.regularization = regularization
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        freedom = x[0, 0].numel() - 1
        squares = (x - x.mean(dim=[2, 3, 4], keepdim=True)).pow(2)
        variance = squares.sum(dim=[2, 3, 4], keepdim=True) / freedom
        return x * self.sigmoid(squares / (4 * (variance + self.regularization)) + 0.5)


def a_single_voxel_or_a_constant_volume_is_finite():
    """The authors' code divides by N - 1, which gives NaN for one voxel."""
    for x in (torch.randn(2, 3, 1, 1, 1), torch.full((2, 3, 4, 1, 2), -3.0)):
        x.requires_grad_()
        y = SimAM(3, 3)(x)
        torch.testing.assert_close(y, x / (1 + torch.exp(torch.tensor(-0.5))))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.isfinite().all()


def a_voxel_far_from_the_mean_has_the_largest_gate():
    x = torch.zeros(1, 1, 4, 4, 4)
    x[..., 1, 2, 3] = 1.0
    gate = SimAM(3, 1).attention_weights(x)["gate"]
    assert gate.argmax() == x.argmax()


def several_blocks_equal_the_plain_form():
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        x = (3.0 + torch.randn(2, 5, 8, 64, 80)).contiguous(memory_format=memory_format).requires_grad_()
        y, plain, weight = SimAM(3, 5)(x), PlainSimAM(5)(x), torch.randn(x.shape)
        torch.testing.assert_close(y, plain)
        torch.testing.assert_close(*(torch.autograd.grad(result, x, weight)[0] for result in (y, plain)))
        assert y.is_contiguous(memory_format=memory_format)


CASE = Case(
    forms={"default": {}, "regularized": {"regularization": 0.5}},
    reference=simam,
    count=lambda c, n, variant: 0,
    keys=lambda n: {"default": "", "regularized": ""},
    plain=PlainSimAM,
    floor=Floor(3, 5, "means and variances: x; gate: x, y", "variances: dy, x; input: dy, x, dx"),
    saved=0.05,
    time=0.8,
    weights={"gate": (2, 8, 4, 3, 5)},
    output=gated,
    published=[(64, 2, {}, 0), (64, 3, {}, 0)],
    values=[{"regularization": 0.0}, {"regularization": -1e-4}],
    kinds=[{"regularization": "small"}],
    drawn={"regularization": [1e-4, 0.01, 1]},
    is_set=True,
    faults=[
        a_single_voxel_or_a_constant_volume_is_finite,
        a_voxel_far_from_the_mean_has_the_largest_gate,
        several_blocks_equal_the_plain_form,
    ],
)
