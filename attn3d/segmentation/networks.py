"""Networks by name, at a size that trains on a CPU."""

from collections.abc import Callable

from monai.networks import nets
from torch import nn

from attn3d.arguments import one_of

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "UNet": lambda **io: nets.UNet(
        spatial_dims=3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, **io
    ),
    "BasicUNet": lambda **io: nets.BasicUNet(spatial_dims=3, features=(8, 16, 32, 64, 128, 8), **io),
    "SegResNet": lambda **io: nets.SegResNet(spatial_dims=3, init_filters=8, blocks_down=(1, 1, 1, 1), **io),
}


def create_network(name: str, in_channels: int, out_channels: int) -> nn.Module:
    """A 3-D segmentation network of MONAI.

    The UNet halves the resolution first, which costs a fourteenth of a network that starts at full resolution.

    Args:
        name: a key of `NETWORKS`.
        in_channels: channels of the scan.
        out_channels: classes, the background included.

    Raises:
        ValueError: when ``name`` is none of them, with the nearest.
    """
    return NETWORKS[one_of("network", name, NETWORKS)](in_channels=in_channels, out_channels=out_channels)
