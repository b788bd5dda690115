"""Numbers of parameters: closed forms over many widths, and the published totals of whole networks."""

from __future__ import annotations

import pytest
import torch

import attn3d
from tests.configurations import FORMS, of_form
from tests.mechanisms.cases import CASES

WIDTHS = [1, 2, 3, 8, 16, 33, 64, 96, 256, 512]

# (blocks, width of their output) of the four stages. Totals are torchvision's; published totals are below.
RESNET18 = [(2, 64), (2, 128), (2, 256), (2, 512)]
RESNET34 = [(3, 64), (4, 128), (6, 256), (3, 512)]
RESNET50 = [(3, 256), (4, 512), (6, 1024), (3, 2048)]
RESNET101 = [(3, 256), (4, 512), (23, 1024), (3, 2048)]
PLAIN18, PLAIN34, PLAIN50, PLAIN101 = 11_689_512, 21_797_672, 25_557_032, 44_549_160
PLAIN_MOBILENET_V2 = 3_504_872


def count(name, channels, *, spatial_dims=2, **options) -> int:
    with torch.device("meta"):
        module = attn3d.create_attention(name, spatial_dims=spatial_dims, channels=channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_closed_form(name, variant, spatial_dims):
    counted = {c: count(name, c, spatial_dims=spatial_dims, **of_form(name, variant)) for c in WIDTHS}
    assert counted == {c: CASES[name].count(c, spatial_dims, variant) for c in WIDTHS}


@pytest.mark.parametrize("channels", WIDTHS)
def test_non_local_modes(channels):
    inner = max(1, channels // 2)
    projections = 4 * channels * inner + 3 * inner + channels
    assert count("non_local", channels, norm=None) == projections
    assert count("non_local", channels, mode="dot_product") == projections + 2 * channels
    assert count("non_local", channels, mode="concatenation") == projections + 2 * channels + 2 * inner
    without_theta_phi = 2 * channels * inner + inner + channels
    assert count("non_local", channels, mode="gaussian") == without_theta_phi + 2 * channels


@pytest.mark.parametrize(
    ("name", "channels", "spatial_dims", "options", "published"),
    [(name, *published) for name, case in CASES.items() for published in case.published],
)
def test_published_module(name, channels, spatial_dims, options, published):
    assert count(name, channels, spatial_dims=spatial_dims, **options) == published


def in_every_block(name, stages, **options) -> int:
    return sum(blocks * count(name, width, **options) for blocks, width in stages)


@pytest.mark.parametrize(
    ("plain", "stages", "bias", "published"),
    [
        (PLAIN18, RESNET18, True, 11_778_592),
        (PLAIN50, RESNET50, True, 28_088_024),
        (PLAIN50, RESNET50, False, 28_071_976),
        (PLAIN101, RESNET101, True, 49_326_872),
    ],
)
def test_se_resnet(plain, stages, bias, published):
    assert plain + in_every_block("se", stages, bias=bias) == published


@pytest.mark.parametrize(
    ("plain", "stages", "published"),
    [
        (PLAIN18, RESNET18, 11_779_392),
        (PLAIN34, RESNET34, 21_960_468),
        (PLAIN50, RESNET50, 28_089_624),
        (PLAIN101, RESNET101, 49_330_172),
    ],
)
def test_cbam_resnet(plain, stages, published):
    assert plain + in_every_block("cbam", stages, variant="paper") == published


@pytest.mark.parametrize(
    ("plain", "stages", "published"),
    [
        (PLAIN18, RESNET18, 11_712_503),
        (PLAIN50, RESNET50, 25_915_099),
        (PLAIN101, RESNET101, 44_907_227),
    ],
)
def test_bam_after_the_first_three_stages(plain, stages, published):
    assert plain + sum(count("bam", width, variant="paper") for _, width in stages[:3]) == published


@pytest.mark.parametrize(("spatial_dims", "published"), [(2, 358_067), (3, 551_603)])
def test_bam_of_three_widths(spatial_dims, published):
    widths = (256, 512, 1024)
    assert sum(count("bam", c, spatial_dims=spatial_dims, variant="paper") for c in widths) == published


def test_eca_resnet50():
    assert [count("eca", width, variant="paper") for _, width in RESNET50] == [5, 5, 5, 7]
    assert in_every_block("eca", RESNET50, variant="paper") == 86


@pytest.mark.parametrize("variant", ["compact", "paper"])
def test_a_given_kernel_overrides_the_formula(variant):
    assert [count("eca", width, kernel_size=9, variant=variant) for width in (8, 2048)] == [9, 9]


def test_sknet50():
    """A ResNet-50 in which selective kernels of half the output's width replace the 3 x 3 convolutions."""
    total = 64 * 3 * 7**2 + 2 * 64
    incoming = 64
    for blocks, width in RESNET50:
        middle = width // 2
        total += incoming * width + 2 * width  # the shortcut of the stage's first block
        for _ in range(blocks):
            total += incoming * middle + 2 * middle
            total += count("sk", middle, variant="paper")
            total += middle * width + 2 * width
            incoming = width
    total += 2048 * 1000 + 1000
    assert total == 27_479_784


def test_gc_resnet50():
    assert PLAIN50 + count("gc", 1024) == 25_690_345
    assert PLAIN50 + in_every_block("gc", RESNET50[1:]) == 28_078_773


def test_non_local_resnet50():
    assert PLAIN50 + count("non_local", 1024, norm=None) == 27_656_744
    assert PLAIN50 + count("non_local", 1024) == 27_658_792


def test_coordinate_mobilenet_v2():
    """In every inverted residual block that expands, at the expanded width."""
    expanded = [6 * c for c in (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160)]
    assert PLAIN_MOBILENET_V2 + sum(count("coord", c, variant="paper") for c in expanded) == 3_950_648


def test_dual_attention():
    def parameters(module):
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        assert parameters(attn3d.PositionAttention(2, 512)) == 328_321
        assert parameters(attn3d.ChannelAttention(2, 512)) == 1
        assert parameters(attn3d.DualAttentionHead(2, 2048, 512, 19)) == 23_954_619
