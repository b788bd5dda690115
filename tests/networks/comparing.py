"""What tests of networks compare, before and after a change."""

import io
from typing import Any

import torch
from torch import nn

from attn3d.insertion import attention_parameters
from tests.networks.every_way import maps


def equal(output: Any, other: Any) -> bool:
    """Whether outputs are bitwise equal; on the meta device, whether their shapes are."""
    pairs = zip(maps(output), maps(other), strict=True)
    return all(one.shape == two.shape if one.is_meta else torch.equal(one, two) for one, two in pairs)


def anatomy(net: nn.Module) -> list[Any]:
    """What removal must restore: modules, their classes, keys, hooks and attributes."""
    return [
        (path, type(module), list(module._parameters), list(module._buffers), sorted(module.__dict__))
        + tuple(len(module.__dict__[name]) for name in ("_forward_hooks", "_forward_pre_hooks", "_modules"))
        for path, module in net.named_modules()
    ]


def saved_and_loaded(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def randomise(net: nn.Module) -> None:
    """Makes the parameters of attention random, so that no gate is closed and no branch is zero.

    They are small, because maps that are multiplied at many sites, as by cpca, overflow otherwise.
    """
    with torch.no_grad():
        for parameter in attention_parameters(net):
            parameter.normal_(std=0.1)
