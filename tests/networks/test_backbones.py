"""Attention in 2-D image backbones by module path: published parameter counts, torchvision and timm."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from attn3d.insertion import insert_attention, remove_attention
from tests.networks.resnets import resnet

LAST = {18: "bn2", 34: "bn2", 50: "bn3", 101: "bn3"}  # the layer before the sum with the shortcut
PAPER = {"variant": "paper"}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("depth", "name", "at", "options", "published"),
    [
        (18, None, "", {}, 11_689_512),
        (50, None, "", {}, 25_557_032),
        (101, None, "", {}, 44_549_160),
        (18, "se", "layer?.*.{last}", PAPER, 11_778_592),
        (50, "se", "layer?.*.{last}", PAPER, 28_088_024),
        (50, "se", "layer?.*.{last}", {}, 28_071_976),
        (101, "se", "layer?.*.{last}", PAPER, 49_326_872),
        (18, "cbam", "layer?.*.{last}", PAPER, 11_779_392),
        (34, "cbam", "layer?.*.{last}", PAPER, 21_960_468),
        (50, "cbam", "layer?.*.{last}", PAPER, 28_089_624),
        (101, "cbam", "layer?.*.{last}", PAPER, 49_330_172),
        (18, "bam", "layer[1-3]", PAPER, 11_712_503),
        (50, "bam", "layer[1-3]", PAPER, 25_915_099),
        (101, "bam", "layer[1-3]", PAPER, 44_907_227),
        (50, "eca", "layer?.*.{last}", PAPER, 25_557_032 + 86),
        (50, "gc", "layer3.5", {}, 25_690_345),
        (50, "gc", "layer[2-4].*.{last}", {}, 28_078_773),
        (50, "non_local", "layer3.4", {"norm": None}, 27_656_744),
        (50, "non_local", "layer3.4", {}, 27_658_792),
    ],
)
def test_published_counts(depth: int, name: str | None, at: str, options: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        net = resnet(depth)
    if name:
        insert_attention(net, name, at="path:" + at.format(last=LAST[depth]), **options)
    assert parameters(net) == published


def importable(name: str) -> bool:
    """Whether a package can be imported: torchvision for CUDA fails with a PyTorch for CPUs."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


def check(net: nn.Module, at: str) -> None:
    """Attention starts as the identity, has an effect once its gate opens, gets gradients, and can be removed."""
    net, x = net.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, keys = net(x), list(net.state_dict())
        insert_attention(net, "cbam", at=at, identity=True, input_shape=x.shape)
        assert torch.equal(net(x), plain)
        gates = [value for key, value in net.named_parameters() if key.endswith("attn3d.0.gate")]
        assert gates
        for gate in gates:
            gate.fill_(1)
        assert not torch.equal(net(x), plain)
    net(x).square().mean().backward()
    assert all(gate.grad is not None for gate in gates)
    with torch.no_grad():
        assert torch.equal(remove_attention(net)(x), plain)
    assert list(net.state_dict()) == keys


def test_a_resnet_by_path() -> None:
    """torchvision's networks are tested below if it is installed."""
    check(resnet(18), r"path:layer[1-4]\.\d\.bn2")


@pytest.mark.skipif(not importable("torchvision"), reason="no torchvision that fits this PyTorch is installed")
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("resnet18", "path:layer?.*.bn2"),
        ("resnet50", "path:layer[2-4]"),
        ("densenet121", "path:features.denseblock?.denselayer[1-6]"),
        ("mobilenet_v3_small", "path:features.[1-9]"),
        ("convnext_tiny", "path:features.[1357]"),
    ],
)
def test_torchvision(name: str, at: str) -> None:
    models = importlib.import_module("torchvision.models")
    check(models.get_model(name), at)


@pytest.mark.skipif(not importable("torchvision"), reason="no torchvision that fits this PyTorch is installed")
def test_torchvision_has_the_same_counts() -> None:
    models = importlib.import_module("torchvision.models")
    for depth in LAST:
        net = models.get_model(f"resnet{depth}")
        assert list(net.state_dict()) == list(resnet(depth).state_dict())


@pytest.mark.skipif(not importable("timm"), reason="timm, or a torchvision that fits this PyTorch, is not installed")
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("resnet18", "path:layer?"),
        ("efficientnet_b0", "path:blocks.?"),
        ("convnext_atto", "path:stages.?"),
        ("regnety_002", "path:s?"),
    ],
)
def test_timm(name: str, at: str) -> None:
    check(importlib.import_module("timm").create_model(name), at)
