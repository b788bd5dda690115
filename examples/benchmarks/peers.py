"""Modules of other libraries with the same or a similar function, if they are installed."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from monai.networks.blocks import ChannelSELayer, SABlock, SpatialAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import attn3d
from examples.benchmarks.measuring import Bench, Row, sizes, training

NEIGHBORHOOD = 7


class OnTokens(nn.Module):
    """Applies a module of tokens (B, N, C) to a volume."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return self.call(self.net, x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


class Peer(NamedTuple):
    """A comparison: a function that creates two functions of the same inputs, and the package that it needs."""

    mechanism: str
    ours: str
    name: str
    package: str
    inputs: Callable[[], tuple[Tensor, ...]]
    make: Callable[[], tuple[Callable, Callable]]
    where: str


def peers(bench: Bench, large: tuple[int, ...], smaller: tuple[int, ...], channels: int) -> Iterator[Row]:
    """Time and memory in training, compared with every peer; attention over all pairs is on the smaller map."""
    for peer in listed(bench, large, smaller, channels):
        if not bench.chosen([peer.mechanism]):
            continue
        what = f"{peer.ours}, training, {peer.where}"
        if importlib.util.find_spec(peer.package) is None:
            yield Row(what, peer.name, None, None, "", note="not installed", measure="peer")
            continue
        inputs = peer.inputs()
        try:
            steps = [training(function, *inputs) for function in peer.make()]
        except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # Packages outside of the tested set may have an unknown version or need another device.
            if peer.package in ("monai", "torch"):
                raise
            yield Row(what, peer.name, None, None, "", note=f"raises {type(error).__name__}", measure="peer")
            continue
        yield bench.time(what, peer.name, *steps, measure="peer")
        yield bench.memory(what, peer.name, *steps, measure="peer")


def listed(bench: Bench, large: tuple[int, ...], smaller: tuple[int, ...], channels: int) -> list[Peer]:
    """All peers, installed or not."""
    heads = max(heads for heads in range(1, 9) if channels % heads == 0)
    groups = max(groups for groups in range(1, 33) if channels % groups == 0)
    on_large, on_smaller = sizes(large, channels), sizes(smaller, channels)

    def volume(shape: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (bench.random(1, channels, *shape),)

    def tokens() -> tuple[Tensor, ...]:
        count = smaller[0] * smaller[1] * smaller[2]
        return tuple(bench.random(1, heads, count, channels // heads) for _ in range(3))

    def of_volume() -> tuple[Tensor, ...]:
        return tuple(bench.random(1, *large, heads, channels // heads) for _ in range(3))

    def nets(ours: tuple[str, dict[str, Any]], theirs: Callable[[], nn.Module]) -> Callable:
        return lambda: tuple(
            bench.placed(net) for net in (attn3d.create_attention(ours, spatial_dims=3, channels=channels), theirs())
        )

    def self_attention(**options: Any) -> Callable[[], nn.Module]:
        return lambda: OnTokens(SABlock(channels, heads, qkv_bias=True, **options), lambda net, x: net(x))

    def pytorch() -> nn.Module:
        net = nn.MultiheadAttention(channels, heads, batch_first=True)
        return OnTokens(net, lambda net, x: net(x, x, x, need_weights=False)[0])

    def spatial() -> nn.Module:
        return SpatialAttentionBlock(3, channels, num_head_channels=channels // heads, norm_num_groups=groups)

    def timm(name: str) -> Callable[[], nn.Module]:
        return lambda: getattr(importlib.import_module("timm_3d.layers"), name)(channels)

    mhsa = ("mhsa", {"num_heads": heads})
    biased = ("se", {"bias": True})
    found = [
        Peer("se", "se", "MONAI ChannelSELayer", "monai", volume(large),
             nets(biased, lambda: ChannelSELayer(3, channels, r=16 if channels >= 16 else 1)), on_large),
        Peer("mhsa", "mhsa", "MONAI SABlock", "monai", volume(smaller), nets(mhsa, self_attention()), on_smaller),
        Peer("mhsa", "mhsa", "MONAI SABlock, flash", "monai", volume(smaller),
             nets(mhsa, self_attention(use_flash_attention=True)), on_smaller),
        Peer("mhsa", "mhsa", "MONAI SpatialAttentionBlock", "monai", volume(smaller), nets(mhsa, spatial), on_smaller),
        Peer("mhsa", "mhsa", "PyTorch MultiheadAttention", "torch", volume(smaller), nets(mhsa, pytorch), on_smaller),
        Peer("mhsa", "attend", "PyTorch, bare SDPA", "torch", tokens,
             lambda: (attn3d.attend, scaled_dot_product_attention), f"{heads} heads, {on_smaller}"),
        Peer("mhsa", "attend, neighbourhoods of 7³", "NATTEN na3d", "natten", of_volume,
             lambda: neighbourhoods(large, heads), f"{heads} heads, {on_large}"),
    ]  # fmt: skip
    for ours, theirs in ((biased, "SEModule"), ("eca", "EcaModule"), (("gc", {"fusion": "mul"}), "GlobalContext")):
        name = ours if isinstance(ours, str) else ours[0]
        found.append(
            Peer(name, name, f"timm_3d {theirs}", "timm_3d", volume(large), nets(ours, timm(theirs)), on_large)
        )
    return found


def neighbourhoods(shape: tuple[int, ...], heads: int) -> tuple[Callable, Callable]:
    """Both functions for inputs (B, *S, H, d), the layout of NATTEN."""
    theirs = importlib.import_module("natten").na3d
    layer = attn3d.attention.VolumeAttention(3, heads, pattern=attn3d.Neighborhood(NEIGHBORHOOD))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = layer(*(x.flatten(1, 3).transpose(1, 2) for x in (q, k, v)), list(shape))
        return y.transpose(1, 2).unflatten(1, shape)

    return ours, lambda q, k, v: theirs(q, k, v, kernel_size=NEIGHBORHOOD)
