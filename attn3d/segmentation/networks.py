"""Networks by name, shaped by the geometry of the data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai.networks import nets
from torch import Tensor, nn

from attn3d.arguments import of_python, one_of
from attn3d.factory import find
from attn3d.insertion import insert_attention

_MOST_CHANNELS = 320  # nnU-Net's, in 3-D
_HALVED_THREE_TIMES = ((2, 2, 2),) * 3

NETWORKS = ("UNet", "ResidualUNet", "DynUNet", "ResidualDynUNet", "BasicUNet", "SegResNet")
_HALVINGS_OF_ALL_AXES = {"BasicUNet": 4, "SegResNet": 3}  # for networks that do not use `strides`


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
    """Creates a 3-D segmentation network of MONAI, with attention if ``attention`` is given.

    - ``UNet``: one convolution per stage. The first one already downsamples, so the network costs a fourteenth of one
      that starts at full resolution and can be trained on a CPU.
    - ``ResidualUNet``: a UNet with residual units, the last one at full resolution. It gives finer borders at three
      times the cost.
    - ``DynUNet``: the network of nnU-Net, which starts at full resolution, with kernels and strides per axis and deep
      supervision.
    - ``ResidualDynUNet``: a DynUNet with residual units.
    - ``BasicUNet``, ``SegResNet``: halve all axes in every stage; ``strides`` is not used.

    Args:
        name: one of `NETWORKS`.
        in_channels: channels of the scan.
        out_channels: number of classes, including the background.
        strides: the stride of each downsampling, per axis.
        kernels: the kernel size at each resolution of a DynUNet, per axis; 3 by default.
        width: channels at the highest resolution; they double with each downsampling.
        deep_supervision: whether a DynUNet in training mode also returns logits of coarser resolutions.
        attention: a spec for `attn3d.insert_attention`, or None.
        at: kinds of site for attention.

    Raises:
        ValueError: when ``name`` is unknown; the message has the nearest name. Also as `attn3d.insert_attention`.
    """
    strides, kernels = of_python(strides), of_python(kernels)
    kind, arguments = network_arguments(name, in_channels, out_channels, strides, kernels, width, deep_supervision)
    net = getattr(nets, kind)(**arguments)
    if attention is None:
        return net
    find(attention, "attention")
    return insert_attention(net, attention, at=at)


def network_arguments(
    name: str,
    in_channels: int,
    out_channels: int,
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None,
    width: int,
    deep_supervision: bool,
) -> tuple[str, dict[str, Any]]:
    """The class in `monai.networks.nets` of a network without attention, and its arguments as plain data.

    The arguments are those of `create_network`.
    """
    one_of("network", name, NETWORKS)
    channels: dict[str, Any] = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": out_channels}
    widths = [min(width * 2**level, _MOST_CHANNELS) for level in range(len(strides) + 1)]
    residual = name.startswith("Residual")
    if uses_kernels(name):
        return "DynUNet", {
            **channels,
            "kernel_size": kernels or ((3, 3, 3),) * (1 + len(strides)),
            "strides": ((1, 1, 1), *strides),
            "upsample_kernel_size": strides,
            "filters": widths,
            "res_block": residual,
            "deep_supervision": deep_supervision and len(strides) > 1,
            "deep_supr_num": max(1, len(strides) - 1),
        }
    if name == "BasicUNet":
        half = narrowest(name, width)
        return name, {**channels, "features": (*(half * 2**level for level in range(5)), half)}
    if name == "SegResNet":
        return name, {**channels, "init_filters": narrowest(name, width), "blocks_down": (1, 1, 1, 1)}
    return "UNet", {
        **channels, "channels": widths, "strides": tuple(strides), "num_res_units": 2 if residual else 0
    }  # fmt: skip


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of a state dictionary that contains NaN or infinity; None if there is none."""
    return next((name for name, values in state.items() if not values.isfinite().all()), None)


def narrowest(name: str, width: int) -> int:
    """The smallest number of channels of a map in the network."""
    if name not in _HALVINGS_OF_ALL_AXES:
        return width
    return max(8 if name == "SegResNet" else 1, width // 2)


def uses_strides(name: str) -> bool:
    """Whether the strides of a network can be chosen."""
    return name not in _HALVINGS_OF_ALL_AXES


def uses_kernels(name: str) -> bool:
    """Whether the kernel sizes of a network can be chosen."""
    return name.endswith("DynUNet")


def shape_multiple(name: str, strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The number per axis that must divide the size of a patch."""
    if name in _HALVINGS_OF_ALL_AXES:
        return (2 ** _HALVINGS_OF_ALL_AXES[name],) * 3
    return tuple(math.prod(steps) for steps in zip((1, 1, 1), *strides, strict=True))
