"""Cells: a few at a time, what fills them up, and tables of windows that are clipped."""

from __future__ import annotations

import pytest
import torch

from attn3d import Grid, Window
from tests.attention.layers import (
    SCOPES,
    Scoped,
    assert_equal_to_the_loops,
    layer_of,
    tokens,
)
from tests.marks import some


@pytest.mark.parametrize("bytes", some([600, 5_000, 100_000], lambda room: room != 5_000))
@pytest.mark.parametrize("scoped", SCOPES, ids=str)
def test_a_few_cells_at_a_time(scoped, bytes, monkeypatch):
    """Tiles smaller than a cell, one cell, and several: the same outputs and gradients."""
    monkeypatch.setattr("attn3d.attention.volume.room_for_cells", lambda *_: bytes)
    monkeypatch.setattr("attn3d.attention.methods.room_for_scores", lambda *_: bytes)
    assert_equal_to_the_loops(scoped, (5, 7), "chunked")


class TestPadding:
    """What fills up a cell is never seen."""

    @pytest.mark.parametrize("scoped", [Scoped(Window(4)), Scoped(Grid(4)),
                                        Scoped(Window(4, shift=True))], ids=str)  # fmt: skip
    @pytest.mark.parametrize("method", ["chunked", "fused", "scripted"])
    def test_values_that_are_all_one_give_one(self, method, scoped):
        """A zero among the values would lower the mean, whatever the weights."""
        q, k, v = tokens((5, 6))
        found = layer_of(scoped, 2, method)(q, k, torch.ones_like(v), [5, 6])
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("method", ["chunked", "fused", "scripted"])
    def test_the_voxel_that_stands_in_for_it_is_not_seen(self, method):
        """Nor has its loudness any effect."""
        scoped = Scoped(Window(4))
        q, k, v = (leaf.detach() for leaf in tokens((5, 6)))
        layer = layer_of(scoped, 2, method)
        before = layer(q, k, v, [5, 6])
        k[:, :, 0], v[:, :, 0] = 1e4, 1e6
        after = layer(q, k, v, [5, 6])
        seen = torch.zeros(5, 6, dtype=torch.bool)
        seen[:4, :4] = True  # the window of the first voxel
        assert torch.equal(after[:, :, ~seen.flatten()], before[:, :, ~seen.flatten()])
        assert not torch.equal(after[:, :, seen.flatten()], before[:, :, seen.flatten()])


class TestClippedWindow:
    """A window larger than an axis: the entries of its table are those of the offsets that are left."""

    @pytest.mark.parametrize("method", ["chunked", "reference", "scripted"])
    @pytest.mark.parametrize("scope", [Window, Grid])
    @pytest.mark.parametrize("position_bias", ["axis", "joint"])
    def test_only_offsets_that_occur_are_trained(self, position_bias, scope, method):
        """And they are found by their distance from the middle of the table."""
        scoped = Scoped(scope((2, 7)), position_bias)
        layer = layer_of(scoped, 2, method)
        leaves = tokens((4, 3))
        (gradient,) = torch.autograd.grad(layer(*leaves, [4, 3]).square().sum(), layer.position_table)
        moved = gradient.abs().sum(0) > 0
        if position_bias == "joint":
            expected = torch.zeros(3, 13, dtype=torch.bool)
            expected[:, 6 - 2 : 6 + 3] = True
        else:
            expected = torch.zeros(16, dtype=torch.bool)
            expected[:3] = expected[3 + 6 - 2 : 3 + 6 + 3] = True
        assert torch.equal(moved, expected.flatten())


def test_tokens_that_do_not_fill_the_volume_are_refused():
    q = torch.zeros(1, 1, 12, 2)
    args = (None, None, None, [3, 5], "window,window", [2, 2], [1, 1], False, 1.0, 0.0, 1000)
    with pytest.raises(ValueError, match=r"`shape` must have 12 voxels, as many as there are tokens, got \[3, 5\]"):
        torch.ops.attn3d.attend_cells(q, q, q, *args)
