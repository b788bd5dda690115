"""Dual attention: each of its two halves, the published head, and energies that grow with the volume."""

from __future__ import annotations

import pytest
import torch

import attn3d
from attn3d.attention import ChannelwiseAttention, VolumeAttention
from tests.configurations import randomise
from tests.mechanisms.cases import danet
from tests.mechanisms.parity import (
    assert_close,
    assert_close_to_reference,
    assert_gradients_close,
    names_of_inputs,
    volume,
)

SCALES = ["none", "1/N", "1/sqrt(N)"]
ENERGIES = ["paper", "official"]


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 1, 3)], ids=str)
def test_position_attention(shape, reduction):
    options = {"reduction": reduction}
    module = randomise(attn3d.PositionAttention(len(shape), 6, **options).double())
    assert_close_to_reference(module, danet.position_attention, volume(2, 6, *shape), options)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("channel_energy", ENERGIES)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 1, 3)], ids=str)
def test_channel_attention(shape, channel_energy, scale):
    options = {"channel_energy": channel_energy, "scale": scale}
    module = randomise(attn3d.ChannelAttention(len(shape), 4, **options).double())
    assert_close_to_reference(module, danet.channel_attention, volume(2, 4, *shape), options)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_the_published_head(spatial_dims, training):
    """Compares the logits of the sum, the position branch and the channel branch with the loops, without dropout."""
    module = randomise(attn3d.DualAttentionHead(spatial_dims, 12, 4, 3).double()).train(training)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.eval()
    x = volume(2, 12, *(3, 2, 2)[:spatial_dims]).requires_grad_()

    def convolution(block):
        conv, norm = list(block)[:2]
        return conv.weight, norm.weight, norm.bias, norm.running_mean.clone(), norm.running_var.clone()

    branches = [
        (convolution(first), list(attention.parameters()), convolution(last))
        for first, attention, last in (module.position, module.channel)
    ]
    classifiers = [
        list(classify.parameters()) for classify in (module.classify, module.classify_position, module.classify_channel)
    ]
    expected = danet.dual_attention_head(x, branches, classifiers, training)
    output = module(x)
    assert len(output) == len(expected) == 3
    output, expected = torch.stack(output), torch.stack(expected)
    assert_close(output, expected)
    inputs = [x, *module.parameters()]
    assert_gradients_close(output, inputs, expected, inputs, names_of_inputs(module))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("channel_energy", ENERGIES)
def test_half_precision_with_energies_beyond_its_range(channel_energy, scale):
    """At 48^3 voxels the energy of a channel with itself exceeds 65,504, the largest number in half precision."""
    options = {"channel_energy": channel_energy, "scale": scale}
    x = volume(1, 3, 48, 48, 48).half()
    assert (x.double() ** 2).sum((2, 3, 4)).min() > 65_504
    module = randomise(attn3d.ChannelAttention(3, 3, **options).double())
    expected = module(x.double())
    output = module.half()(x)
    assert output.dtype == torch.half
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("channel_energy", ENERGIES)
def test_the_paper_favours_similar_channels_and_the_code_opposite_ones(channel_energy):
    """The paper's energy favours similar channels, that of the authors' code opposite channels."""
    base = volume(1, 1, 3, 4, 2)
    x = torch.cat([base, base, -base], 1)
    rows = attn3d.ChannelAttention(3, 3, channel_energy=channel_energy).double().attention_weights(x)["affinity"]
    assert rows.shape == (1, 3, 3)
    torch.testing.assert_close(rows.sum(2), torch.ones(1, 3, dtype=torch.float64))
    likes_first = rows[0, 0, 1] > rows[0, 0, 2]
    assert likes_first == (channel_energy == "paper")


def test_the_reported_rows_of_position_attention():
    """With identity maps for the values and alpha 1, y - x is the product of the rows and the voxels."""
    module = randomise(attn3d.PositionAttention(3, 4, reduction=2).double())
    with torch.no_grad():
        module.alpha.fill_(1)
        module.value.weight.copy_(torch.eye(4).view_as(module.value.weight))
        module.value.bias.zero_()
    x = volume(2, 4, 4, 3, 2)
    queries = torch.tensor([0, 7, 23])
    rows = module.attention_weights(x, queries)["query"]
    assert rows.shape == (2, 1, 3, 4, 3, 2)
    expected = torch.einsum("bqn,bcn->bcq", rows[:, 0].flatten(2), x.flatten(2))
    torch.testing.assert_close((module(x) - x).flatten(2)[:, :, queries], expected)


@pytest.mark.parametrize(
    "build",
    [attn3d.DualAttention, lambda *args, **kw: attn3d.DualAttentionHead(*args, 8, 2, **kw), attn3d.PairedAttention],
)
def test_options_of_position_attention_are_passed_on(build):
    """They reach the layer of a mechanism and that of the published head."""
    module = build(3, 16, pattern=("window", {"size": 2}), backend="math", memory_budget="1GiB")
    (layer,) = (part for part in module.modules() if isinstance(part, VolumeAttention))
    assert (layer.pattern, layer.backend, layer.memory_budget) == (attn3d.Window(2), "math", 2**30)


def test_options_of_channel_attention_are_passed_on():
    """They reach the layer of the mechanism and that of the published head."""
    for build in (attn3d.DualAttention, lambda *args, **options: attn3d.DualAttentionHead(*args, 8, 2, **options)):
        module = build(3, 16, channel_energy="official", scale="1/N")
        (layer,) = (part for part in module.modules() if isinstance(part, ChannelwiseAttention))
        assert (layer.official, layer.power) == (True, -1.0)
