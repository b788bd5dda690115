"""Every configuration of the mechanisms (forms, modes, published variants), from their cases, for all tests."""

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
    """One configuration: the id of the test, the name and form of the mechanism, and its options."""

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
# Softmax attention in patterns other than global; `tests/attention` compares these with its own loops.
SCOPED = _cells(lambda case: case.patterns)
EVERY = CONFIGURATIONS + SCOPED
BY_ID = {configuration.id: configuration for configuration in EVERY}


def taking(option: str) -> list[str]:
    """The mechanisms that have an option."""
    return [name for name in CASES if option in inspect.signature(REGISTRY[name]).parameters]


OVER_VOXELS = taking("backend")  # mechanisms whose voxels attend to each other
OF_TOKENS = [*OVER_VOXELS, "channel"]  # mechanisms with a layer of `attn3d.attention`
OF_ONE_MAP = [name for name, case in CASES.items() if case.alone is None]  # mechanisms without a gating signal


def of_form(name: str, variant: str) -> dict[str, str]:
    """The option that selects a form of a mechanism; empty if it has one form only."""
    return {"variant": variant} if name in taking("variant") else {}


FORMS = [
    (name, variant)
    for name in CASES
    for variant in ("compact", "paper")
    if variant == "compact" or name in taking("variant")
]


def attends_to_all(configuration: Configuration) -> bool:
    """Whether it has softmax attention over all pairs of voxels, whose fused kernels have no second derivative."""
    return configuration.name in OVER_VOXELS and "gaussian" in configuration.options.get("mode", "gaussian")


def create(name: str, **options: Any) -> nn.Module:
    """Creates a mechanism by name. One with a gating signal makes it from x, so that it takes one map."""
    return attn3d.create_attention(CASES[name].alone or name, **options)


def build(
    configuration: Configuration, spatial_dims: int, channels: int, *, seed: int = 0, **options: Any
) -> nn.Module:
    """Builds a configuration in float64 with random parameters and running statistics.

    Args:
        configuration: the configuration.
        spatial_dims: 1, 2 or 3.
        channels: channels of the input.
        seed: seed of the random values.
        **options: options that replace those of the configuration.
    """
    options = configuration.options | options
    module = create(configuration.name, spatial_dims=spatial_dims, channels=channels, **options)
    return randomise(module.double(), seed)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Sets all parameters and running statistics to random values, including those that start at zero or one.

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
