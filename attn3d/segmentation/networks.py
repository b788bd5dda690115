"""Networks by name, shaped by the geometry of the data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai.networks import nets
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.insertion import insert_attention

_MOST_CHANNELS = 320  # nnU-Net's, in 3-D
_HALVED_THREE_TIMES = ((2, 2, 2),) * 3

NETWORKS = ("UNet", "ResidualUNet", "DynUNet", "ResidualDynUNet", "BasicUNet", "SegResNet")
_HALVINGS_OF_ALL_AXES = {"BasicUNet": 4, "SegResNet": 3}  # of the networks that no stride reaches


def create_network(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    strides: Sequence[Sequence[int]] = _HALVED_THREE_TIMES,
    kernels: Sequence[Sequence[int]] | None = None,
    width: int = 16,
    deep_supervision: bool = True,
    attention: Any = None,
    at: Sequence[str] = (),
) -> nn.Module:
    """A 3-D segmentation network of MONAI, with attention if it is asked for.

    - ``UNet``: one convolution for each step; it goes down with the first, which costs a fourteenth of a network that
      starts at full resolution, and is what a CPU can train.
    - ``ResidualUNet``: the same with residual units, the last at full resolution: finer borders, thrice the cost.
    - ``DynUNet``: nnU-Net's, at full resolution from the start, kernels and strides per axis, deep supervision.
    - ``ResidualDynUNet``: the same with residual units.
    - ``BasicUNet``, ``SegResNet``: halve every axis alike, whatever the strides.

    Args:
        name: one of `NETWORKS`.
        in_channels: channels of the scan.
        out_channels: classes, the background included.
        strides: of each step down, per axis.
        kernels: of each resolution, per axis; 3 by default.
        width: channels at the highest resolution; they double with each step.
        deep_supervision: whether a DynUNet in training also gives logits of its coarser resolutions.
        attention: a spec as for `attn3d.insert_attention`, or None.
        at: kinds of site for it.

    Raises:
        ValueError: when ``name`` is none of them, with the nearest; as `attn3d.insert_attention` otherwise.
    """
    one_of("network", name, NETWORKS)
    channels: dict[str, Any] = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": out_channels}
    widths = [min(width * 2**level, _MOST_CHANNELS) for level in range(len(strides) + 1)]
    residual = name.startswith("Residual")
    net: nn.Module
    if name.endswith("DynUNet"):
        net = nets.DynUNet(
            kernel_size=kernels or ((3, 3, 3),) * (1 + len(strides)),
            strides=((1, 1, 1), *strides),
            upsample_kernel_size=strides,
            filters=widths,
            res_block=residual,
            deep_supervision=deep_supervision and len(strides) > 1,
            deep_supr_num=max(1, len(strides) - 1),
            **channels,
        )
    elif name == "BasicUNet":
        half = narrowest(name, width)
        net = nets.BasicUNet(features=(*(half * 2**level for level in range(5)), half), **channels)
    elif name == "SegResNet":
        net = nets.SegResNet(init_filters=narrowest(name, width), blocks_down=(1, 1, 1, 1), **channels)
    else:
        net = nets.UNet(**channels | {"channels": widths, "strides": tuple(strides)}, num_res_units=2 * residual)
    return net if attention is None else insert_attention(net, attention, at=tuple(at))


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of a state dictionary with a NaN or an infinity in it, None if there is none."""
    return next((name for name, values in state.items() if not values.isfinite().all()), None)


def narrowest(name: str, width: int) -> int:
    """Channels of the maps that have fewest."""
    if name not in _HALVINGS_OF_ALL_AXES:
        return width
    return max(8 if name == "SegResNet" else 1, width // 2)


def shape_multiple(name: str, strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What the sides of a patch must be multiples of."""
    if name in _HALVINGS_OF_ALL_AXES:
        return (2 ** _HALVINGS_OF_ALL_AXES[name],) * 3
    return tuple(math.prod(steps) for steps in zip((1, 1, 1), *strides, strict=True))
