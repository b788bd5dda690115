"""A training step of MONAI's networks with a mechanism at every stage, compared with the plain network."""

import copy
from collections.abc import Callable, Iterator

import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn
from torch.nn.functional import cross_entropy

import attn3d
from examples.benchmarks.measuring import MIB, Bench, Row, sizes
from tests.configurations import OF_ONE_MAP

PATCH, SMALL_PATCH, CHANNELS, CLASSES = (48, 48, 48), (16, 16, 16), 16, 3  # sizes are halved three times
WINDOWED = ("non_local", "mhsa", "danet")  # all pairs of the first stage would take longer than the network
WINDOW = {"pattern": ("window", {"size": 8})}


def unet(width: int) -> nn.Module:
    """Four stages with two residual units each."""
    return UNet(3, 1, CLASSES, [width * 2**stage for stage in range(4)], (2, 2, 2), num_res_units=2)


def segresnet(width: int) -> nn.Module:
    """Four stages, with MONAI's defaults."""
    return SegResNet(3, width, 1, CLASSES)


def dynunet(width: int) -> nn.Module:
    """Four stages, as nnU-Net would plan them for a small patch."""
    filters = [width * 2**stage for stage in range(4)]
    return DynUNet(3, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=filters)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"UNet": unet, "SegResNet": segresnet, "DynUNet": dynunet}


def insertion(bench: Bench) -> Iterator[Row]:
    """Every mechanism in every network."""
    patch, width = bench.shape or (SMALL_PATCH if bench.small else PATCH), bench.width(CHANNELS)
    x = torch.randn(1, 1, *patch, device=bench.device, dtype=bench.dtype)
    target = torch.randint(CLASSES, (1, *patch), device=bench.device)
    for network, build in NETWORKS.items():
        host = build(width)
        plain = step(bench.placed(copy.deepcopy(host)), x, target)
        of_plain = bench.peak(plain) / MIB
        for name in bench.chosen(attn3d.list_attention()):
            options = WINDOW if name in WINDOWED else {}
            at = "encoder" if name in OF_ONE_MAP else "skip"
            with_it = attn3d.insert_attention(copy.deepcopy(host), name, at=at, **options)
            stages = sum(len(one["at"]) for one in attn3d.inserted_attention(with_it))
            pair = step(bench.placed(with_it), x, target), plain
            what = f"{network} with {name}{', windows of 8³,' if options else ''} at {stages} stages, "
            what += sizes(patch, width)
            yield bench.time(what, "without", *pair, group=name, measure=f"{network}, time")
            peak, measure = bench.peak(pair[0]) / MIB, f"{network}, memory"
            yield Row(what, "without", peak, of_plain, "MiB", group=name, measure=measure)


def step(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """A training step: forward, loss, backward, optimiser."""
    optimizer = torch.optim.AdamW(net.parameters())

    def run() -> None:
        cross_entropy(net(x).float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end, so that the next step does not free memory of this one

    return run
