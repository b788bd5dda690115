"""Large kernel attention, arXiv 2202.09741: y = x (W dw_{7, dilation 3}(dw_5(x))), depthwise, without a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn3d import LargeKernelAttention
from tests.mechanisms.case import PAPER, Case, Floor, PerAxis
from tests.references.plain import convolution, pointwise, volume, voxels


def large_kernel_attention(
    x, parameters, statistics, training, *, variant="compact", kernel_size=5, dilated_kernel_size=7, dilation=3
):
    channels, axes = x.shape[1], x.dim() - 2
    remaining = iter(parameters)
    features = values = voxels(x)
    for size, step in ((kernel_size, 1), (dilated_kernel_size, dilation)):
        kernels = [(size,) * axes]
        if variant == "compact":
            kernels = [tuple(size if place == axis else 1 for place in range(axes)) for axis in range(axes)]
        for kernel in kernels:
            weight, bias = next(remaining).reshape(channels, 1, *kernel), next(remaining)
            features = convolution(features, weight, bias, dilation=[step] * axes, groups=channels)
    weights = pointwise(features, next(remaining).reshape(channels, channels), next(remaining))
    assert not list(remaining)
    return volume({index: value * weights[index] for index, value in values.items()})


class PlainLKA(nn.Module):
    """Local and dilated depthwise kernels along each axis, a pointwise kernel, and a product."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        lines = [tuple(int(place == axis) for place in range(3)) for axis in range(3)]

        def along(line, size, dilation):
            kernel, padding = ([size if on else 1 for on in line], [size // 2 * dilation if on else 0 for on in line])
            return nn.Conv3d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels)

        self.local = nn.Sequential(*(along(line, 5, 1) for line in lines))
        self.dilated = nn.Sequential(*(along(line, 7, 3) for line in lines))
        self.pointwise = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.local(x.clone())
        attention = self.dilated(attention)
        return x * self.pointwise(attention)


def count(c, n, variant):
    if variant == "compact":
        return n * c * (5 + 1) + n * c * (7 + 1) + c * c + c
    return c * (5**n + 1) + c * (7**n + 1) + c * c + c


def keys(n):
    def kernel(name, size, axis):
        shape = "".join(f"x{size if axis in (place, None) else 1}" for place in range(n))
        return f"{name}.weight 8x1{shape}, {name}.bias 8"

    lines = [kernel(f"{name}.{axis}", size, axis) for name, size in (("local", 5), ("dilated", 7)) for axis in range(n)]
    whole = [kernel("local.0", 5, None), kernel("dilated.0", 7, None)]
    last = f"pointwise.weight 8x8{n * 'x1'}, pointwise.bias 8"
    return {"default": ", ".join([*lines, last]), "paper": ", ".join([*whole, last])}


def without_axis(parameters, axis):
    """The kernels along the axis have no counterpart in the compact form: they become the identity."""
    dims = (len(parameters) - 2) // 4
    if len(parameters) == 6:
        return parameters  # the paper's form: two full kernels and the pointwise one
    kept = []
    for place in range(0, len(parameters) - 2, 2):
        weight, bias = parameters[place : place + 2]
        if place // 2 % dims == axis:
            weight.copy_(
                (torch.arange(weight[0].numel()) == weight[0].numel() // 2).view_as(weight[:1]).expand_as(weight)
            )
            bias.zero_()
        else:
            kept += [weight, bias]
    return [*kept, *parameters[-2:]]


def a_voxel_sees_eleven_voxels_to_each_side():
    for variant in ("compact", "paper"):
        module = LargeKernelAttention(1, 1, variant=variant)
        for parameter in module.parameters():
            torch.nn.init.ones_(parameter)
        x = torch.zeros(1, 1, 41)
        x[..., 20] = 1.0
        reached = (module.attention_weights(x)["gate"] != module.attention_weights(0 * x)["gate"])[0, 0]
        assert reached.nonzero().flatten().tolist() == list(range(9, 32))


CASE = Case(
    forms={"default": {}, "paper": PAPER},
    reference=large_kernel_attention,
    count=count,
    keys=keys,
    plain=PlainLKA,
    floor=Floor(3, 5, "all kernels: x; product: x, y", "all kernels: dy, x; input: dy, x, dx"),
    time=1.1,
    weights={"gate": (2, 8, 4, 3, 5)},
    output=lambda x, weights: x * weights["gate"],
    published=[(64, 2, PAPER, 9_024), (64, 3, PAPER, 34_240), (64, 3, {}, 6_848)],
    values=[{"kernel_size": 4}, {"dilated_kernel_size": (3, 5)}, {"dilation": 0}],
    kinds=[{"kernel_size": 5.0}, {"dilation": "3"}],
    drawn={
        "kernel_size": PerAxis([1, 3, 5]),
        "dilated_kernel_size": PerAxis([1, 3, 7]),
        "dilation": PerAxis([1, 2, 3]),
    },
    smaller={"kernel_size": 3, "dilated_kernel_size": 3, "dilation": 1},
    smaller_channels=2,
    in_order=["default"],  # the bias of the first kernel is cut off at the border of the second
    without_axis=without_axis,
    faults=[a_voxel_sees_eleven_voxels_to_each_side],
)
