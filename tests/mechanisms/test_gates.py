"""Mechanisms with gates: what the gates depend on, and options that override the variant."""

from __future__ import annotations

import itertools

import pytest
import torch

import attn3d
from attn3d.mechanisms.base import hidden_width
from tests.configurations import BY_ID, CONFIGURATIONS, build, create, randomise, taking
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close_to_reference, volume

CUBE_OF_CHANNELS = (1, 5, 5, 3, 2)  # batch 1, with as many channels as slices; the axes have different sizes


def make(name, channels, spatial_dims=3, **options):
    module = create(name, spatial_dims=spatial_dims, channels=channels, **options)
    return randomise(module.double())


def is_constant(x, axis) -> bool:
    return torch.allclose(x, x.narrow(axis, 0, 1).expand_as(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("configuration", ["se", "se-paper", "eca", "eca-paper", "gc-multiply"])
def test_a_channel_gate_is_constant_along_every_spatial_axis(configuration):
    x = volume(*CUBE_OF_CHANNELS)
    gate = build(BY_ID[configuration], 3, 5)(x) / x
    for axis in (2, 3, 4):
        assert is_constant(gate, axis)
    assert not is_constant(gate, 1)


@pytest.mark.parametrize(
    "configuration", [cell for cell in CONFIGURATIONS if CASES[cell.name].output], ids=lambda cell: cell.id
)
def test_the_output_follows_from_the_reported_weights(configuration):
    x = volume(2, 6, 4, 2, 3)
    module = build(configuration, 3, 6).eval()
    expected = CASES[configuration.name].output(x, module.attention_weights(x))
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("configuration", ["sk", "sk-paper", "sk-three_branches"])
def test_the_shares_of_the_branches_sum_to_one(configuration):
    shares = build(BY_ID[configuration], 3, 6).attention_weights(volume(2, 6, 4, 2, 3))["branch"]
    assert shares.shape == (2, 3 if "three" in configuration else 2, 6, 1, 1, 1)
    torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[:, 0]))


@pytest.mark.parametrize(
    ("channels", "reduction", "hidden"), [(1, 16, 1), (3, 16, 3), (16, 16, 4), (64, 16, 4), (128, 16, 8), (16, 2, 8)]
)
def test_the_hidden_width_of_a_squeeze(channels, reduction, hidden):
    assert hidden_width(channels, reduction) == hidden


@pytest.mark.parametrize(
    "name", [name for name in taking("reduction") if {"channel", "added"} & set(CASES[name].weights)]
)
def test_a_gate_of_few_channels_depends_on_the_image(name):
    """A single hidden unit would be zero after ReLU half of the time, and the norm of `gc` would cancel it."""
    x = volume(8, 16, 4, 2, 3)
    spreads = []
    for seed in range(20):
        module = randomise(attn3d.create_attention(name, spatial_dims=3, channels=16).double(), seed).eval()
        weights = module.attention_weights(x)
        spreads.append(weights.get("channel", weights.get("added")).std(0).max())
    assert sum(spread > 1e-3 for spread in spreads) >= 17  # random biases sometimes make all four units zero


def test_coordinate_gates_vary_only_along_their_own_axis():
    x = volume(2, 6, 4, 2, 3)
    gates = build(BY_ID["coord"], 3, 6).eval().attention_weights(x)
    assert list(gates) == ["axis0", "axis1", "axis2"]
    for axis, gate in enumerate(gates.values()):
        shape = [2, 6, 1, 1, 1]
        shape[2 + axis] = x.shape[2 + axis]
        assert list(gate.shape) == shape
        assert not is_constant(gate, 2 + axis)


def test_an_axis_of_one_voxel_has_a_coordinate_gate():
    gates = build(BY_ID["coord"], 3, 6).eval().attention_weights(volume(2, 6, 1, 2, 3))
    assert gates["axis0"].shape == (2, 6, 1, 1, 1)
    assert (gates["axis0"] < 1).all()


@pytest.mark.parametrize(("channels", "middle"), [(8, 8), (256, 8), (320, 10)])
def test_the_middle_width_of_coordinate_attention(channels, middle):
    assert next(attn3d.CoordinateAttention(3, channels).parameters()).shape[:2] == (middle, channels)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": variant, "bias": bias, "norm": norm, "order": order}
        for variant, bias, norm, order in itertools.product(
            ("compact", "paper"), (True, False), ("batch", None), (("mean", "max"), ("max", "mean"))
        )
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_cbam_options_override_the_variant(options):
    options = {"reduction": 2, "kernel_size": 3} | options
    module = make("cbam", 4, spatial_dims=2, **options)
    assert_close_to_reference(module, CASES["cbam"].reference, volume(2, 4, 3, 4), options)


@pytest.mark.parametrize("name", ["cbam", "bam"])
@pytest.mark.parametrize("variant", ["compact", "paper"])
def test_a_kernel_size_for_every_axis(name, variant):
    options = {"reduction": 2, "kernel_size": (1, 5, 3), "variant": variant}
    module = make(name, 4, **options)
    assert_close_to_reference(module, CASES[name].reference, volume(2, 4, 3, 4, 2), options)


@pytest.mark.parametrize("variant", ["compact", "paper"])
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)], ids=str)
def test_bam_dilations(variant, dilation):
    options = {"reduction": 2, "kernel_size": 3, "dilation": dilation, "variant": variant}
    module = make("bam", 4, spatial_dims=2, **options)
    assert_close_to_reference(module, CASES["bam"].reference, volume(2, 4, 5, 6), options)


@pytest.mark.parametrize("kernel_size", [1, 5, 9, None])
def test_eca_kernels(kernel_size):
    options = {"kernel_size": kernel_size}
    module = make("eca", 12, **options)
    assert_close_to_reference(module, CASES["eca"].reference, volume(2, 12, 2, 3, 2), options)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("variant", ["compact", "paper"])
def test_selective_kernels_take_the_largest_divisor_as_groups(groups, variant):
    options = {"groups": groups, "min_channels": 2, "reduction": 2, "variant": variant}
    module = make("sk", 6, spatial_dims=2, **options)
    assert_close_to_reference(module, CASES["sk"].reference, volume(2, 6, 3, 4), options)


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize("variant", ["compact", "paper"])
def test_the_activation_of_coordinate_attention_overrides_the_variant(activation, variant):
    options = {"activation": activation, "variant": variant, "min_channels": 3}
    module = make("coord", 4, **options)
    assert_close_to_reference(module, CASES["coord"].reference, 4 * volume(2, 4, 2, 3, 2), options)


@pytest.mark.parametrize("name", CASES)
def test_weights_have_the_documented_names_and_shapes(name):
    """For three queries where each voxel has its own weights; by default for the central voxel."""
    module, x = make(name, 8).eval(), volume(2, 8, 4, 3, 5)
    found = module.attention_weights(x, torch.tensor([0, 7, 59]))
    assert {key: tuple(weights.shape) for key, weights in found.items()} == CASES[name].weights
    if "query" in found:
        middle = torch.tensor([2 * 15 + 1 * 5 + 2])
        torch.testing.assert_close(module.attention_weights(x)["query"], module.attention_weights(x, middle)["query"])


def test_weights_of_bam_are_those_of_its_two_maps():
    """Each is the sigmoid of its map."""
    module, x = build(BY_ID["bam"], 3, 6).eval(), volume(2, 6, 4, 2, 3)
    found = module.attention_weights(x)
    logits = {name: torch.logit(weights) for name, weights in found.items()}
    torch.testing.assert_close(module(x), x * torch.sigmoid(logits["channel"] + logits["spatial"]))


FAULTS = [(name, check) for name, case in CASES.items() for check in case.faults]


@pytest.mark.parametrize("check", [check for _, check in FAULTS], ids=[f"{name}-{of.__name__}" for name, of in FAULTS])
def test_properties_of_a_mechanism(check):
    """The functions in `faults` of each case."""
    check()


def test_an_attention_gate_pads_each_axis_to_its_own_stride():
    module, shapes = attn3d.AttentionGate(2, 4, stride=(1, 2), norm=None), []
    module.of_map.register_forward_hook(lambda _, given, y: shapes.append(tuple(y.shape[2:])))
    x = torch.randn(1, 4, 5, 7)
    module(x, x)
    assert shapes == [(5, 4)]
