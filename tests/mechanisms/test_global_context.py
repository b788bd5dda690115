"""Global context: one context for all voxels."""

from __future__ import annotations

import warnings

import pytest
import torch

import attn3d
from tests.configurations import BY_ID, build
from tests.mechanisms.parity import volume


def test_the_same_context_is_added_to_every_voxel():
    x = volume(1, 5, 5, 3, 2)
    added = build(BY_ID["gc"], 3, 5)(x) - x
    torch.testing.assert_close(added, added[..., :1, :1, :1].expand_as(added), rtol=0, atol=1e-12)


def test_the_weights_of_the_voxels_sum_to_one():
    weights = build(BY_ID["gc"], 3, 5).attention_weights(volume(2, 5, 4, 3, 2))["spatial"]
    assert weights.shape == (2, 1, 4, 3, 2)
    torch.testing.assert_close(weights.sum((1, 2, 3, 4)), torch.ones(2, dtype=torch.float64))


def test_the_reported_weights_are_added_or_multiplied():
    x = volume(2, 6, 4, 2, 3)
    added, gating = (build(BY_ID[name], 3, 6).eval() for name in ("gc", "gc-multiply"))
    torch.testing.assert_close(added(x), x + added.attention_weights(x)["added"], rtol=1e-12, atol=0)
    torch.testing.assert_close(gating(x), x * gating.attention_weights(x)["channel"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", [True, False], ids=["half", "autocast"])
def test_small_weights_of_a_large_volume_are_not_rounded(dtype, cast):
    """In float16, 1 / 1,474,560 would be 3 % off, and 0 for volumes above 2^25 voxels."""
    gc, x = attn3d.GlobalContext(3, 2, norm=None), 1 + volume(1, 2, 96, 96, 160).float() / 10
    with torch.no_grad():
        torch.nn.init.zeros_(gc.score.weight)  # equal weights
        expected = x.mean((2, 3, 4))
        gc.squeeze, gc.excite = torch.nn.Identity(), torch.nn.Identity()
        gc = gc.to(dtype) if cast else gc
        with torch.autocast("cpu", dtype, enabled=not cast):
            given = x.to(dtype) if cast else x
            found = gc.context(given, gc.spatial_weights(given)).flatten(1).float()
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


def test_a_script_in_half_precision_equals_the_module():
    gc, x = build(BY_ID["gc"], 3, 5).eval().bfloat16(), volume(1, 5, 5, 3, 2).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.script(gc)
    torch.testing.assert_close(scripted(x), gc(x))
