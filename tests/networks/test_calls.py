"""Calls of one network are independent: threads, replicas, and forward passes recomputed by checkpointing."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.networks.nets import SegResNet, SegResNetDS
from torch import Tensor, nn

from attn3d.insertion import insert_attention
from tests.networks.comparing import randomise
from tests.networks.every_way import AT, EveryWay, maps
from tests.networks.recomputed import Recomputed, recompute

pytestmark = pytest.mark.scorecard("insertion")


def every_way() -> nn.Module:
    net = insert_attention(EveryWay(2), "cbam", at=AT)
    return insert_attention(net, "sk", at="conv")


def sums() -> nn.Module:
    net = SegResNet(2, 8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    return insert_attention(net, "cbam", at=("encoder", "skip", "residual"))


def sums_of_items() -> nn.Module:
    return insert_attention(SegResNetDS(2, 4, blocks_down=(1, 1, 1)), "cbam", at=("encoder", "skip"))


def signals() -> nn.Module:
    net = SegResNet(2, 8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    return insert_attention(net, "attention_gate", at="skip", variant="paper")


NETWORKS = [every_way, sums, sums_of_items, signals]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = make().eval()
    randomise(net)
    return net


def images(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, 1, 16, 16) for _ in range(count)]


@pytest.mark.parametrize("make", NETWORKS)
def test_eight_threads(make: Callable[[], nn.Module]) -> None:
    net, volumes = made(make), images(8) * 10
    expected = [net(x) for x in volumes]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(net, volumes), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("make", NETWORKS)
def test_two_forwards_before_one_backward(make: Callable[[], nn.Module], whole: bool) -> None:
    """With checkpointing of the whole network, or of each stage."""
    net, volumes = made(make), images(2)
    total = sum(output.square().mean() for x in volumes for output in maps(net(x)))
    expected = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    again = Recomputed(net) if whole else net
    if not whole:
        for child in [*net.children()]:
            stages = [*child.children()] if isinstance(child, nn.ModuleList) else [child]
            recompute(*(stage for stage in stages if not isinstance(stage, nn.ModuleDict)))
    outputs = [output for x in volumes for output in maps(again(x))]
    for output in outputs:
        output.square().mean().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def replicate(net: nn.Module, scale: float) -> nn.Module:
    """Makes a replica like `torch.nn.parallel.replicate`, which needs GPUs, with scaled parameters.

    As in PyTorch, `_replicate_for_data_parallel` copies every module, the copies get the copies of their children,
    and parameters are plain tensors.
    """
    copies = {module: module._replicate_for_data_parallel() for module in net.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            setattr(replica, name, child if child is None else copies[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter if parameter is None else parameter.detach() * scale)
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer if buffer is None else buffer.clone())
    return copies[net]


@pytest.mark.parametrize("make", NETWORKS)
def test_replicas(make: Callable[[], nn.Module]) -> None:
    """Replicas run in threads, each with its own parameters."""
    net, volumes, scales = made(make), images(4), (0.5, 0.8, 1.1, 1.4)
    expected = []
    for x, scale in zip(volumes, scales, strict=True):
        twin = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(scale)
        expected.append(twin(x))
    replicas = [replicate(net, scale) for scale in scales]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda pair: pair[0](pair[1]), zip(replicas, volumes, strict=True)))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)
