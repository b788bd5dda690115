"""Groups contain the pairs of their pattern, and the number of groups computed at a time changes no result."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from attn3d import Axial, Grid, Neighborhood, Window
from attn3d.attention import VolumeAttention
from attn3d.attention.groups import AxisGroups, alike, outer, relation
from tests.attention.exactness import set_tile_bytes
from tests.attention.layers import (
    ANISOTROPIC,
    PATTERNS,
    SHAPES,
    Scoped,
    assert_equal_to_the_loops,
    layer_of,
    tokens,
)
from tests.marks import some
from tests.references.attention import keys_seen, steps

LOCAL = [scoped for scoped in PATTERNS if scoped.pattern.local and scoped.position_bias != "joint"]
CASES = [(scoped, shape) for scoped in LOCAL for shape in SHAPES]
CASES += [(scoped, (3, 5, 6)) for scoped in ANISOTROPIC if scoped.pattern.local]
BACKENDS = ["chunked", "sdpa", "captured"]


def pairs(groups):
    """(query, key, index of each in its group) of every query that sees a key."""
    seen = np.ones(groups.size, bool) if groups.seen is None else groups.seen
    for queries, keys in groups.runs(3 * sum(groups.size), torch.empty(math.prod(groups.shape), 0)):
        for query_tokens, key_tokens in zip(queries.tolist(), keys.tolist(), strict=True):
            for i, j in zip(*seen.nonzero(), strict=True):
                yield query_tokens[i], key_tokens[j], i, j


@pytest.mark.parametrize(("scoped", "shape"), CASES, ids=str)
def test_the_pairs_are_those_of_the_rule(scoped, shape):
    """Each pair occurs once, no other pair occurs, and distances are those that a position bias uses."""
    rule, voxels, found = scoped.rule(len(shape)), list(itertools.product(*map(range, shape))), []
    for groups in scoped.pattern.groups(shape):
        spread = [np.broadcast_to(along, along.shape) for along in groups.distances]
        widths = [along.shape for along in spread]
        for query, key, i, j in pairs(groups):
            found.append((voxels[query], voxels[key]))
            places = zip(
                np.unravel_index(i, [width[0] for width in widths]),
                np.unravel_index(j, [width[1] for width in widths]),
                strict=True,
            )
            distance = tuple(int(along[place]) for along, place in zip(spread, places, strict=True))
            if scoped.name != "axial":
                assert distance == steps(rule, voxels[query], voxels[key], shape)
    assert len(found) == len(set(found))
    assert set(found) == {(voxel, key) for voxel in voxels for key in keys_seen(rule, voxel, shape)}


@pytest.mark.parametrize(("scoped", "shape"), CASES, ids=str)
def test_every_token_is_a_query_once(scoped, shape):
    """Batches with `again` set have the same queries once more, so that parts of a softmax are merged."""
    first, again = np.zeros(math.prod(shape), int), np.zeros(math.prod(shape), int)
    for groups in scoped.pattern.groups(shape):
        for queries, _ in groups.runs(2 * sum(groups.size), torch.empty(math.prod(groups.shape), 0)):
            np.add.at(again if groups.again else first, queries.flatten().numpy(), 1)
    assert (first == 1).all()
    assert scoped.name == "axial" or (again == 0).all()


@pytest.mark.parametrize(("scoped", "shape"), CASES, ids=str)
def test_the_dense_relation_is_that_of_the_rule(scoped, shape):
    """The union over all covers of the product over the axes."""
    rule, voxels = scoped.rule(len(shape)), list(itertools.product(*map(range, shape)))
    covers = scoped.pattern.relations(shape)
    for i, voxel in enumerate(voxels):
        seen = {
            key
            for key in voxels
            for axes in covers
            if all(along[0][here, there] for along, here, there in zip(axes, voxel, key, strict=True))
        }
        assert seen == set(keys_seen(rule, voxel, shape)), i


class TestSegments:
    """A border or a shift cuts a window to a smaller one, without a mask."""

    @staticmethod
    def sizes(pattern, shape):
        groups = pattern.groups(shape)
        assert all(one.seen is None for one in groups)
        return {one.size: math.prod(map(len, one.queries)) for one in groups}

    def test_windows_that_fit_are_one_batch(self):
        assert self.sizes(Window(4), (8, 12)) == {(16, 16): 6}

    def test_a_border_cuts(self):
        assert self.sizes(Window(4), (9,)) == {(4, 4): 2, (1, 1): 1}

    def test_a_shift_cuts_at_both_ends(self):
        assert self.sizes(Window(4, shift=True), (8,)) == {(4, 4): 1, (2, 2): 2}
        assert self.sizes(Window(3, shift=True), (7,)) == {(1, 1): 1, (3, 3): 2}

    def test_groups_are_products_of_segments(self):
        found = Window(4, shift=True).groups((8, 8))
        assert sorted(one.size for one in found) == [(4, 4), (8, 8), (8, 8), (16, 16)]
        assert [math.prod(map(len, one.queries)) for one in found] == [4, 2, 2, 1]

    def test_a_window_that_is_larger_than_an_axis_is_not_shifted(self):
        assert self.sizes(Window(8, shift=True), (5,)) == {(5, 5): 1}

    def test_grids_of_unequal_remainders(self):
        assert self.sizes(Grid(3), (8,)) == {(3, 3): 2, (2, 2): 1}

    def test_lines_are_merged(self):
        groups = Axial().groups((3, 5))
        assert [one.again for one in groups] == [False, True]
        assert groups[0].seen is None
        assert not groups[1].seen.diagonal().any()  # a voxel sees itself on its first line only

    def test_the_interior_of_neighbourhoods_is_one_batch(self):
        groups = Neighborhood(7).groups((64,))
        assert max(math.prod(map(len, one.queries)) for one in groups) == 14
        assert len(groups) == 3

    def test_a_size_of_one_everywhere(self):
        for pattern in (Window(4, shift=True), Grid(3), Axial(), Neighborhood(5, dilation=2)):
            groups = pattern.groups((1, 1, 1))
            assert {one.size for one in groups} == {(1, 1)}


def test_positions_outside_the_axis_are_left_out():
    groups = AxisGroups(np.array([[-1, 0, 1], [2, 3, 4]]), np.array([[-1, 0, 1], [2, 3, 4]]))
    batches = alike(groups, 4)
    assert [(batch.queries.tolist(), batch.keys.tolist()) for batch in batches] == [
        ([[0, 1], [2, 3]], [[0, 1], [2, 3]])
    ]
    seen, distance = relation(groups, 4)
    assert seen.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    assert distance[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("shared", [0, 1])
def test_outer(shared):
    """The last array varies fastest; shared axes are kept."""
    x, y = torch.arange(6).view(2, 3), 10 * torch.arange(8).view(2, 4)
    found = outer(torch.add, [x, y], shared)
    if shared:
        assert torch.equal(found, (x[:, :, None] + y[:, None]).flatten(1))
    else:
        assert torch.equal(found, (x[:, None, :, None] + y[None, :, None]).reshape(4, 12))


@pytest.mark.parametrize("tile_bytes", some([600, 5_000, 100_000], lambda count: count != 5_000))
@pytest.mark.parametrize("backend", ["chunked", "sdpa"])
@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
def test_a_few_groups_at_a_time(scoped, backend, tile_bytes, monkeypatch):
    """Tiles of less than a group, of one group and of several give the same outputs and gradients."""
    set_tile_bytes(monkeypatch, tile_bytes)
    assert_equal_to_the_loops(scoped, (5, 7), backend)


class TestPadding:
    """Captures pad groups with a voxel that no query sees; other backends do not pad."""

    @pytest.mark.parametrize("scoped", [Scoped(Window(4)), Scoped(Grid(4)),
                                        Scoped(Window(4, shift=True))], ids=str)  # fmt: skip
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_values_that_are_all_one_give_one(self, backend, scoped):
        """A padding value of zero would lower the mean."""
        q, k, v = tokens((5, 6))
        found = layer_of(scoped, 2, backend)(q, k, torch.ones_like(v), [5, 6])
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_padding_voxel_is_not_seen(self, backend):
        """Large values in it have no effect either."""
        scoped = Scoped(Window(4))
        q, k, v = (leaf.detach() for leaf in tokens((5, 6)))
        layer = layer_of(scoped, 2, backend)
        before = layer(q, k, v, [5, 6])
        k[:, :, 0], v[:, :, 0] = 1e4, 1e6
        after = layer(q, k, v, [5, 6])
        seen = torch.zeros(5, 6, dtype=torch.bool)
        seen[:4, :4] = True  # the window of the first voxel
        assert torch.equal(after[:, :, ~seen.flatten()], before[:, :, ~seen.flatten()])
        assert not torch.equal(after[:, :, seen.flatten()], before[:, :, seen.flatten()])


class TestClippedWindow:
    """A window that is larger than an axis uses the table entries of the offsets that occur."""

    @pytest.mark.parametrize("backend", ["chunked", "math", "auto", "captured"])
    @pytest.mark.parametrize("pattern", [Window, Grid])
    @pytest.mark.parametrize("position_bias", ["axis", "joint"])
    def test_only_offsets_that_occur_are_trained(self, position_bias, pattern, backend):
        """Offsets are counted from the middle of the table."""
        scoped = Scoped(pattern((2, 7)), position_bias)
        layer = layer_of(scoped, 2, backend)
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
    with pytest.raises(ValueError, match=r"`shape` must have 12 voxels, the number of tokens, got \(3, 5\)"):
        VolumeAttention(2, 1, pattern=Window(2))(q, q, q, [3, 5])
