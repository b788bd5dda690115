"""The scopes: what their rules say, their specs, and errors."""

from __future__ import annotations

import pytest
import torch
from attn3d.attention.scopes import create_scope, name_of

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Scope, VolumeAttention
from tests.attention.layers import (
    Scoped,
    tokens,
)
from tests.mechanisms.parity import volume
from tests.references.attention import keys_seen, pool


class TestRules:
    """What the rules of the references say, so that both are not wrong alike."""

    @staticmethod
    def seen(scoped, shape, voxel):
        rule = scoped.rule(len(shape))
        keys = keys_seen(rule, voxel, shape)
        assert len(keys) == len(set(keys))
        assert voxel in keys
        return keys if len(shape) > 1 else [place for (place,) in keys]

    def test_windows(self):
        scoped = Scoped(Window(4))
        assert [self.seen(scoped, (10,), (i,)) for i in (0, 4, 9)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_shifted_windows_do_not_see_across_the_border(self):
        scoped = Scoped(Window(4, shift=True))
        assert [self.seen(scoped, (9,), (i,)) for i in (1, 2, 8)] == [[0, 1], [2, 3, 4, 5], [6, 7, 8]]
        assert self.seen(scoped, (4,), (0,)) == [0, 1, 2, 3]

    def test_grids(self):
        scoped = Scoped(Grid(3))
        assert [self.seen(scoped, (8,), (i,)) for i in (0, 1, 5)] == [[0, 3, 6], [1, 4, 7], [2, 5]]

    def test_lines(self):
        assert self.seen(Scoped(Axial()), (3, 3), (1, 2)) == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 2)]

    def test_neighbourhoods_slide_inward(self):
        scoped = Scoped(Neighborhood(5))
        found = [self.seen(scoped, (8,), (i,)) for i in (0, 1, 3, 6, 7)]
        assert found == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [3, 4, 5, 6, 7]]

    def test_dilated_neighbourhoods_are_clipped_to_what_every_remainder_has(self):
        scoped = Scoped(Neighborhood(5, dilation=3))
        assert [self.seen(scoped, (11,), (i,)) for i in (0, 4, 10)] == [[0, 3, 6], [1, 4, 7], [4, 7, 10]]

    @pytest.mark.parametrize("scope", [Neighborhood(3), Neighborhood(7), Neighborhood(3, 2)], ids=str)
    @pytest.mark.parametrize("shape", [(5,), (9, 4), (3, 4, 6)], ids=str)
    def test_every_voxel_has_equally_many_neighbours(self, shape, scope):
        layer = Scoped(scope).layer(len(shape))
        q, k, _ = tokens(shape)
        rows = layer.rows(q, k, torch.arange(q.shape[2]), list(shape)).flatten(3)
        counts = (rows > 0).sum(3)
        assert (counts == counts[0, 0, 0]).all()

    def test_pooled_keys_are_means_of_what_a_cell_has(self):
        values = torch.arange(7.0, dtype=torch.float64).view(1, 1, 7, 1)
        assert pool(values, (7,), (3,)).flatten().tolist() == [1.0, 4.0, 6.0]


SPECS = {
    "global": Global(),
    "axial": Axial(),
    ("window", (("size", 8), ("shift", True))): Window(8, shift=True),
    ("window", (("size", (4, 8, 8)),)): Window((4, 8, 8)),
    ("grid", (("size", 4),)): Grid(4),
    ("neighborhood", (("size", 7), ("dilation", 2))): Neighborhood(7, 2),
    ("pooled_keys", (("stride", (1, 2, 2)),)): PooledKeys((1, 2, 2)),
}


class TestSpecs:
    @pytest.mark.parametrize(("spec", "scope"), SPECS.items(), ids=str)
    def test_a_name_and_options_give_the_scope(self, spec, scope):
        """As in Python, and with the lists of YAML and JSON."""
        if isinstance(spec, tuple):
            name, options = spec[0], dict(spec[1])
            as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
            assert create_scope((name, options)) == create_scope([name, as_lists]) == scope
        else:
            assert create_scope(spec) == create_scope((spec,)) == create_scope((spec, {})) == scope
        assert create_scope(scope) is scope
        assert create_scope((name_of(scope), vars(scope))) == scope

    @pytest.mark.parametrize("scope", SPECS.values(), ids=str)
    def test_frozen_hashable_and_shown(self, scope):
        assert {scope: 1}[scope] == 1
        assert eval(repr(scope)) == scope
        with pytest.raises(AttributeError):
            scope.size = 3

    def test_lists_are_frozen(self):
        assert hash(Window([4, 8])) == hash(Window((4, 8)))
        assert hash(Neighborhood([3, 5], [1, 2])) == hash(Neighborhood((3, 5), (1, 2)))
        assert hash(PooledKeys([4, 8])) == hash(PooledKeys((4, 8)))
        assert hash(Grid([4, 8])) == hash(Grid((4, 8)))

    @pytest.mark.parametrize(
        "mechanism", [attn3d.NonLocal, attn3d.MultiHeadSelfAttention, attn3d.DualAttention, attn3d.PositionAttention]
    )
    def test_every_mechanism_takes_them(self, mechanism):
        x = volume(1, 8, 3, 5, 6).float()
        torch.manual_seed(0)
        module = mechanism(3, 8, scope=Window((1, 2, 3), shift=True))
        torch.manual_seed(0)
        same = mechanism(3, 8, scope=["window", {"size": [1, 2, 3], "shift": True}])
        assert torch.equal(module(x), same(x))
        assert "Window(size=(1, 2, 3), shift=True)" in repr(module)

    @pytest.mark.parametrize(
        ("scope", "message"),
        [
            ("windw", r"`scope` got 'windw'; did you mean 'window'\? available: global, window, grid"),
            (("window", {"size": 4, "shfit": True}), r"has no option `shfit`; did you mean 'shift'\?"),
            (("window", {}), "the scope 'window' needs the option `size`"),
            (("neighborhood", {"dilation": 2}), "the scope 'neighborhood' needs the option `size`"),
            (("window", {"size": 4, "shift": "false"}), "`shift` must be True or False, got 'false'"),
            (("global", {"size": 4}), "the scope 'global' has no option `size`"),
            (3, r'`scope` must be a name or \("name", {options}\), got 3'),
            (Global, "`scope` must be .*, got <class"),
            (Scope(), "`scope` must be one of Global, Window, .*, got Scope"),
            (Window(0), "`size` must be at least 1, got 0"),
            (Window((4, 8, 8)), r"`size` must be an integer or one for each of 2 axes, got \(4, 8, 8\)"),
            (Window("8"), "`size` must be an integer or one for each of 2 axes, got '8'"),
            (Window(8.0), "`size` must be an integer or one for each of 2 axes, got 8.0"),
            (Window(None), "`size` must be an integer or one for each of 2 axes, got None"),
            (Window(True), "`size` must be an integer or one for each of 2 axes, got True"),
            (Window((4.0, 4)), "`size` must be an integer, got 4.0"),
            (Grid(-2), "`size` must be at least 1, got -2"),
            (Neighborhood(4), "`size` must be odd, got 4"),
            (Neighborhood(3, 0), "`dilation` must be at least 1, got 0"),
            (Neighborhood(3, (1, 2, 3)), "`dilation` must be an integer or one for each of 2 axes"),
            (PooledKeys(0), "`stride` must be at least 1, got 0"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_named(self, scope, message):
        with pytest.raises((ValueError, TypeError), match=message):
            VolumeAttention(2, 2, scope=scope)
