"""Global context: one context for all voxels."""

from __future__ import annotations

import torch

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
    torch.testing.assert_close(added(x), x + added.attention_weights(x)["channel"], rtol=1e-12, atol=0)
    torch.testing.assert_close(gating(x), x * gating.attention_weights(x)["channel"], rtol=1e-12, atol=0)
