"""Every norm can be chosen in every mechanism with a norm, and works with a single value per channel."""

from __future__ import annotations

import pytest
import torch

from tests.configurations import FORMS, create, of_form, randomise, taking
from tests.mechanisms.parity import volume

SPECS = ["batch", ("group", {"num_groups": 1}), "instance", "layer", None]


@pytest.mark.parametrize("shape", [(1, 4, 1, 1, 1), (1, 4, 3, 1, 2), (2, 4, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("name", "variant"), [form for form in FORMS if form[0] in taking("norm")])
def test_every_norm_trains(name, variant, spec, shape):
    """With single values ReLU may be zero everywhere, so the input's gradient is checked over several draws."""
    gradients = []
    for seed in range(4):
        module = create(name, spatial_dims=3, channels=4, norm=spec, **of_form(name, variant))
        randomise(module.double(), seed).train()
        x = volume(*shape, seed=seed).requires_grad_()
        output = module(x)
        assert output.shape == x.shape
        assert output.isfinite().all()
        output.square().sum().backward()
        for tensor in (x, *module.parameters()):
            assert tensor.grad.isfinite().all()
        gradients.append(x.grad.abs().max())
    assert max(gradients) > 0


@pytest.mark.scorecard("repeats")
@pytest.mark.parametrize("variant", ["compact", "paper"])
@pytest.mark.parametrize("name", ["bam", "sk", "non_local"])
def test_a_single_value_does_not_change_the_running_statistics(name, variant):
    module = create(name, spatial_dims=3, channels=4, variant=variant).double().train()
    before = {name: value.clone() for name, value in module.named_buffers()}
    assert before
    module(volume(1, 4, 1, 1, 1))
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name]), name
