"""Networks by name, shaped by the geometry of the data."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from monai.networks import nets
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.insertion import insert_attention

_MOST_CHANNELS = 320  # nnU-Net's, in 3-D
_HALVED_THREE_TIMES = ((2, 2, 2),) * 3


def _widths(width: int, strides: Sequence[Any]) -> tuple[int, ...]:
    return tuple(min(width * 2**level, _MOST_CHANNELS) for level in range(len(strides) + 1))


def _unet(
    strides: Sequence[Sequence[int]], kernels: Any, width: int, supervised: bool, units: int = 0, **channels: int
) -> nn.Module:
    return nets.UNet(
        spatial_dims=3, channels=_widths(width, strides), strides=tuple(strides), num_res_units=units, **channels
    )


def _dynunet(
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None,
    width: int,
    supervised: bool,
    residual: bool = False,
    **channels: int,
) -> nn.Module:
    return nets.DynUNet(
        spatial_dims=3,
        kernel_size=kernels or ((3, 3, 3),) * (1 + len(strides)),
        strides=((1, 1, 1), *strides),
        upsample_kernel_size=strides,
        filters=_widths(width, strides),
        res_block=residual,
        deep_supervision=supervised and len(strides) > 1,
        deep_supr_num=max(1, len(strides) - 1),
        **channels,
    )


def _basic_unet(strides: Any, kernels: Any, width: int, supervised: bool, **channels: int) -> nn.Module:
    half = narrowest("BasicUNet", width)
    return nets.BasicUNet(spatial_dims=3, features=(*(half * 2**level for level in range(5)), half), **channels)


def _segresnet(strides: Any, kernels: Any, width: int, supervised: bool, **channels: int) -> nn.Module:
    return nets.SegResNet(
        spatial_dims=3, init_filters=narrowest("SegResNet", width), blocks_down=(1, 1, 1, 1), **channels
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "UNet": _unet,
    "ResidualUNet": partial(_unet, units=2),
    "DynUNet": _dynunet,
    "ResidualDynUNet": partial(_dynunet, residual=True),
    "BasicUNet": _basic_unet,
    "SegResNet": _segresnet,
}
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
        name: a key of `NETWORKS`.
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
    build = NETWORKS[one_of("network", name, NETWORKS)]
    shape = {"strides": strides, "kernels": kernels, "width": width, "supervised": deep_supervision}
    net = build(**shape, in_channels=in_channels, out_channels=out_channels)
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
    halvings = _HALVINGS_OF_ALL_AXES.get(name)
    if halvings is not None:
        return (2**halvings,) * 3
    multiple = [1, 1, 1]
    for stride in strides:
        multiple = [one * step for one, step in zip(multiple, stride, strict=True)]
    return tuple(multiple)
