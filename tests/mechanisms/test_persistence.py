"""Checkpoints: frozen keys and shapes, strict loading, dtypes and devices."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.configurations import EVERY, Configuration, create
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import volume

pytestmark = pytest.mark.scorecard("persistence")

CHANNELS = 8


def make(configuration: Configuration, spatial_dims: int) -> torch.nn.Module:
    return create(configuration.name, spatial_dims=spatial_dims, channels=CHANNELS, **configuration.options).eval()


def keys(module: torch.nn.Module) -> list[str]:
    """Names and sizes, in order."""
    return [f"{name} {'x'.join(map(str, value.shape))}".strip() for name, value in module.state_dict().items()]


def frozen(configuration: Configuration, spatial_dims: int) -> list[str]:
    """The keys of the case. Changing them breaks existing checkpoints."""
    keys_of_forms = CASES[configuration.name].keys(spatial_dims)
    return [key for key in keys_of_forms[configuration.form].split(", ") if key]


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("configuration", EVERY, ids=lambda cell: cell.id)
class TestState:
    def test_keys_are_those_of_every_checkpoint(self, configuration, spatial_dims):
        assert keys(make(configuration, spatial_dims)) == frozen(configuration, spatial_dims)

    def test_strict_loading_misses_nothing(self, configuration, spatial_dims):
        """Missing and unexpected keys are named."""
        module = make(configuration, spatial_dims)
        state = module.state_dict()
        for key in state:
            without = copy.copy(state)  # a copy with version numbers: PyTorch accepts missing keys of old batch norms
            del without[key]
            with pytest.raises(RuntimeError, match=rf'Missing key.*"{key}"'):
                module.load_state_dict(without)
        with pytest.raises(RuntimeError, match=r'Unexpected key.*"another"'):
            module.load_state_dict(state | {"another": torch.zeros(1)})

    def test_made_on_a_device_and_filled(self, configuration, spatial_dims):
        module = make(configuration, spatial_dims)
        with torch.device("meta"):
            empty = make(configuration, spatial_dims)
        assert all(value.is_meta for value in empty.state_dict().values())
        empty.load_state_dict(module.state_dict(), assign=True)
        x = volume(2, CHANNELS, *(4, 5, 3)[:spatial_dims]).float()
        assert torch.equal(empty(x), module(x))

    def test_made_in_a_dtype_or_moved_to_it(self, configuration, spatial_dims):
        """By PyTorch's default dtype and by `to`: all parameters change, and changing back restores them bitwise."""
        torch.set_default_dtype(torch.float64)
        try:
            module = make(configuration, spatial_dims)
        finally:
            torch.set_default_dtype(torch.float32)
        floating = [value for value in module.state_dict().values() if value.is_floating_point()]
        assert all(value.dtype == torch.float64 for value in floating)
        x = volume(2, CHANNELS, *(4, 5, 3)[:spatial_dims])
        assert module(x).dtype == torch.float64
        single = make(configuration, spatial_dims)
        before = {name: value.clone() for name, value in single.state_dict().items()}
        single.to(torch.float64).to("cpu", torch.float32)
        assert all(torch.equal(value, before[name]) for name, value in single.state_dict().items())
        assert single.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16

    def test_attention_weights_do_not_depend_on_the_default_dtype(self, configuration, spatial_dims):
        module = make(configuration, spatial_dims).eval()
        x = volume(2, CHANNELS, *(4, 5, 3)[:spatial_dims]).float()
        expected = module.attention_weights(x)
        torch.set_default_dtype(torch.float64)
        try:
            found = module.attention_weights(x)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, expected)
