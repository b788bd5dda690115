"""New modules before training: which of them start as the identity."""

from __future__ import annotations

import pytest
import torch

import attn3d
from tests.configurations import CONFIGURATIONS, create
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import volume

STARTS_AS_IDENTITY = [cell for cell in CONFIGURATIONS if cell.form in CASES[cell.name].identity]


def start(configuration, spatial_dims=3, **options):
    options = configuration.options | options
    return create(configuration.name, spatial_dims=spatial_dims, channels=6, **options).double()


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda cell: cell.id)
def test_identity_at_start_is_true_for_identities(configuration, spatial_dims):
    x = volume(2, 6, *(4, 2, 3)[:spatial_dims])
    module = start(configuration, spatial_dims)
    assert module.identity_at_start == (configuration in STARTS_AS_IDENTITY)
    for training in (True, False):
        assert torch.equal(module.train(training)(x), x) == module.identity_at_start


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("norm", ["batch", "instance", "layer", ("group", {"num_groups": 2}), None], ids=str)
def test_the_published_non_local_block_starts_as_the_identity_under_every_norm(mode, norm):
    x = volume(2, 6, 4, 2, 3)
    module = attn3d.NonLocal(3, 6, mode=mode, norm=norm, variant="paper").double()
    assert module.identity_at_start
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("attention", [attn3d.PositionAttention, attn3d.ChannelAttention])
def test_both_halves_of_dual_attention_start_as_the_identity(attention):
    x = volume(2, 6, 4, 2, 3)
    module = attention(3, 6).double()
    assert module.identity_at_start
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("configuration", STARTS_AS_IDENTITY, ids=lambda cell: cell.id)
def test_a_module_that_starts_as_the_identity_can_leave_it(configuration):
    x = volume(2, 6, 4, 2, 3)
    module = start(configuration)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    (module(x) * volume(2, 6, 4, 2, 3, seed=2)).sum().backward()
    optimiser.step()
    assert not torch.allclose(module(x), x)


def test_the_published_spatial_gate_of_cbam_starts_at_one_half():
    x = volume(2, 6, 4, 2, 3)
    module = attn3d.CBAM(3, 6, variant="paper").double()
    torch.testing.assert_close(module(x), x * module.attention_weights(x)["channel"] / 2)


def test_a_multiplying_global_context_starts_at_one_half():
    x = volume(2, 6, 4, 2, 3)
    torch.testing.assert_close(attn3d.GlobalContext(3, 6, fusion="mul").double()(x), x / 2)
