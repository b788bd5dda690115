"""Every form, mode and published difference of the mechanisms, from their cases: the cells that all tests share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attn3d
from attn3d.mechanisms.registry import REGISTRY
from tests.mechanisms.case import Case
from tests.mechanisms.cases import CASES


class Configuration(NamedTuple):
    """One cell: what to ask of the factory, and names for the test's identifier and the form."""

    id: str
    name: str
    form: str
    options: dict[str, Any]


def _cells(forms: Callable[[Case], dict[str, dict[str, Any]]]) -> list[Configuration]:
    return [
        Configuration(name if form == "default" else f"{name}-{form}", name, form, options)
        for name, case in CASES.items()
        for form, options in forms(case).items()
    ]


CONFIGURATIONS = _cells(lambda case: case.forms)
# Softmax attention within the patterns that are not global; `tests/attention` holds these to loops of their own.
SCOPED = _cells(lambda case: case.patterns)
EVERY = CONFIGURATIONS + SCOPED
BY_ID = {configuration.id: configuration for configuration in EVERY}


def taking(option: str) -> list[str]:
    """The mechanisms that have an option."""
    return [name for name in CASES if option in inspect.signature(REGISTRY[name]).parameters]


OVER_VOXELS = taking("backend")  # whose voxels attend to each other
OF_TOKENS = [*OVER_VOXELS, "channel"]  # that hold a layer of `attn3d.attention`
OF_ONE_MAP = [name for name, case in CASES.items() if case.alone is None]  # that take no gating signal


def create(name: str, **options: Any) -> nn.Module:
    """As the factory makes it; of one map, where the mechanism takes a gating signal."""
    return attn3d.create_attention(CASES[name].alone or name, **options)


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
    module = create(configuration.name, spatial_dims=spatial_dims, channels=channels, **options)
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
