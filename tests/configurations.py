"""Every form, mode and published difference of the ten mechanisms: the cells that all tests share.

A smaller reduction keeps hidden widths above one at the few channels of the tests; nothing else departs from
the defaults.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attn3d


class Configuration(NamedTuple):
    """One cell: what to ask of the factory, and a name for the test's identifier."""

    id: str
    name: str
    options: dict[str, Any]


def _cells(name: str, common: dict[str, Any], **forms: dict[str, Any]) -> list[Configuration]:
    return [
        Configuration(name if form == "default" else f"{name}-{form}", name, common | options)
        for form, options in forms.items()
    ]


PAPER = {"variant": "paper"}

CONFIGURATIONS = [
    *_cells("se", {"reduction": 2}, default={}, paper=PAPER),
    *_cells("eca", {}, default={}, paper=PAPER),
    *_cells("cbam", {"reduction": 2}, default={}, paper=PAPER),
    *_cells(
        "bam",
        {"reduction": 2},
        default={},
        product={"combine": "product"},
        paper=PAPER,
        paper_product=PAPER | {"combine": "product"},
    ),
    *_cells("coord", {"reduction": 2, "min_channels": 3}, default={}, paper=PAPER),
    *_cells(
        "sk",
        {"min_channels": 4},
        default={},
        paper=PAPER,
        three_branches={"branches": 3, "groups": 2},
    ),
    *_cells("gc", {"reduction": 2}, default={}, multiply={"fusion": "mul"}),
    *_cells(
        "non_local",
        {},
        default={},
        paper=PAPER,
        without_norm={"norm": None},
        gaussian={"mode": "gaussian"},
        dot_product={"mode": "dot_product"},
        concatenation={"mode": "concatenation"},
        sub_sample={"sub_sample": True},
    ),
    *_cells("mhsa", {}, default={}, one_head={"num_heads": 1}),
    *_cells(
        "danet",
        {"reduction": 2},
        default={},
        official={"channel_energy": "official"},
        scaled={"scale": "1/N"},
        root_scaled={"scale": "1/sqrt(N)"},
    ),
]
# Softmax attention within the patterns that are not global; `tests/attention` holds these to loops of their own.
SCOPED = [
    *_cells(
        "mhsa",
        {},
        window={"pattern": ("window", {"size": 3, "shift": True}), "position_bias": "axis"},
        grid={"pattern": ("grid", {"size": 2}), "position_bias": "joint"},
        axial={"pattern": "axial"},
        neighborhood={"pattern": ("neighborhood", {"size": 3}), "position_bias": "axis"},
        pooled_keys={"pattern": ("pooled_keys", {"stride": 2})},
    ),
    *_cells("non_local", {}, axial={"pattern": "axial"}),
    *_cells("danet", {"reduction": 2}, window={"pattern": ("window", {"size": 2})}),
]
EVERY = CONFIGURATIONS + SCOPED
BY_ID = {configuration.id: configuration for configuration in EVERY}


def build(
    configuration: Configuration, spatial_dims: int, channels: int, *, seed: int = 0, **options: Any
) -> nn.Module:
    """Builds a cell in float64 with every parameter and running statistic random.

    Args:
        configuration: the cell.
        spatial_dims: 1, 2 or 3.
        channels: channels of the input.
        seed: of the random values.
        **options: options that replace the cell's.
    """
    options = configuration.options | options
    module = attn3d.create_attention(configuration.name, spatial_dims=spatial_dims, channels=channels, **options)
    return randomise(module.double(), seed)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter anew, those that start at zero or one included, and the running statistics.

    Matrices and kernels keep their outputs of order one, so that no gate is saturated.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        inputs = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.normal_(0.0, inputs**-0.5, generator=generator)
    for average, variance in running_statistics(module):
        average.normal_(generator=generator)
        variance.uniform_(0.5, 2.0, generator=generator)
    return module


def running_statistics(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(mean, variance) of every norm that keeps them, in the order of registration."""
    return [
        (norm.running_mean, norm.running_var)
        for norm in module.modules()
        if getattr(norm, "running_mean", None) is not None
    ]
