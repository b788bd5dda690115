"""The patterns: their rules, specs and errors, and a user-defined pattern."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import Pattern, VolumeAttention, create_pattern
from attn3d.attention.groups import AxisGroups
from tests.attention.layers import Scoped, tokens
from tests.configurations import randomise
from tests.marks import plain_id
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.references import attention as loops
from tests.references.attention import keys_seen, pool


class TestRules:
    """The rules of the references, checked by hand, so that library and reference do not share an error."""

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

    def test_dilated_neighbourhoods_are_clipped_to_the_size_of_every_remainder(self):
        scoped = Scoped(Neighborhood(5, dilation=3))
        assert [self.seen(scoped, (11,), (i,)) for i in (0, 4, 10)] == [[0, 3, 6], [1, 4, 7], [4, 7, 10]]

    def test_even_neighbourhoods_reach_one_further_back(self):
        scoped = Scoped(Neighborhood(4))
        found = [self.seen(scoped, (8,), (i,)) for i in (0, 3, 4, 7)]
        assert found == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [4, 5, 6, 7]]

    def test_runs_of_a_stride_see_the_neighbourhood_of_their_leader(self):
        """The leaders of 0 .. 9 are 1, 4, 7 and, at the end, 9."""
        scoped = Scoped(Neighborhood(5, stride=3))
        found = [self.seen(scoped, (10,), (i,)) for i in range(10)]
        assert found == [[0, 1, 2, 3, 4]] * 3 + [[2, 3, 4, 5, 6]] * 3 + [[5, 6, 7, 8, 9]] * 4

    @pytest.mark.parametrize("size", range(1, 8))
    @pytest.mark.parametrize("dilation", range(1, 5))
    def test_every_voxel_sees_itself_in_a_neighbourhood(self, size, dilation):
        """On short axes too, where size and stride are clipped to the number of voxels with a remainder."""
        for stride, extent in itertools.product(range(1, size + 1), range(1, 26)):
            scoped = Scoped(Neighborhood(size, dilation, stride))
            [[(seen, _)]] = scoped.pattern.relations((extent,))
            for i, row in enumerate(seen):
                assert row.nonzero().flatten().tolist() == self.seen(scoped, (extent,), (i,))

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_a_stride_of_the_size_makes_windows(self, size):
        for voxel in range(2 * size):
            window = self.seen(Scoped(Window(size)), (3 * size,), (voxel,))
            assert self.seen(Scoped(Neighborhood(size, stride=size)), (3 * size,), (voxel,)) == window

    @pytest.mark.parametrize("size", [4, 7])
    def test_a_larger_stride_gathers_less(self, size):
        """Counts the keys that are gathered for a volume."""
        fetched = []
        for stride in (1, 2, 4):
            groups = Neighborhood(size, stride=stride).groups((24, 24, 24))
            fetched.append(sum(one.size[1] * torch.tensor([len(keys) for keys in one.keys]).prod() for one in groups))
        assert fetched[0] > fetched[1] > fetched[2]

    @pytest.mark.parametrize(
        "pattern", [Neighborhood(3), Neighborhood(7), Neighborhood(3, 2), Neighborhood(4, stride=3)], ids=str
    )
    @pytest.mark.parametrize("shape", [(5,), (9, 4), (3, 4, 6)], ids=str)
    def test_every_voxel_has_equally_many_neighbours(self, shape, pattern):
        layer = Scoped(pattern).layer(len(shape))
        q, k, _ = tokens(shape)
        rows = layer.rows(q, k, torch.arange(q.shape[2]), list(shape)).flatten(3)
        counts = (rows > 0).sum(3)
        assert (counts == counts[0, 0, 0]).all()

    def test_pooled_keys_are_means_of_the_voxels_in_a_block(self):
        values = torch.arange(7.0, dtype=torch.float64).view(1, 1, 7, 1)
        assert pool(values, (7,), (3,)).flatten().tolist() == [1.0, 4.0, 6.0]

    def test_means_of_pooled_keys_do_not_overflow_in_half_precision(self):
        (means,), *_ = PooledKeys(2).pool((torch.full((1, 1, 8, 1), 4e4, dtype=torch.half),), [2, 2, 2])
        assert means.dtype == torch.half
        assert means.item() == 4e4


SPECS = {
    "global": Global(),
    "axial": Axial(),
    ("window", (("size", 8), ("shift", True))): Window(8, shift=True),
    ("window", (("size", (4, 8, 8)),)): Window((4, 8, 8)),
    ("grid", (("size", 4),)): Grid(4),
    ("neighborhood", (("size", 7), ("dilation", 2))): Neighborhood(7, 2),
    ("neighborhood", (("size", 4), ("stride", (1, 4, 4)))): Neighborhood(4, stride=(1, 4, 4)),
    ("pooled_keys", (("stride", (1, 2, 2)),)): PooledKeys((1, 2, 2)),
}


class TestSpecs:
    @pytest.mark.parametrize(("spec", "pattern"), SPECS.items(), ids=str)
    def test_a_name_and_options_give_the_pattern(self, spec, pattern):
        """With tuples, and with lists as YAML and JSON have."""
        if isinstance(spec, tuple):
            name, options = spec[0], dict(spec[1])
            as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
            assert create_pattern((name, options)) == create_pattern([name, as_lists]) == pattern
        else:
            assert create_pattern(spec) == create_pattern((spec,)) == create_pattern((spec, {})) == pattern
        assert create_pattern(pattern) is pattern
        assert create_pattern((pattern.name, vars(pattern))) == pattern

    @pytest.mark.parametrize("pattern", SPECS.values(), ids=str)
    def test_frozen_hashable_and_printable(self, pattern):
        assert {pattern: 1}[pattern] == 1
        assert eval(repr(pattern)) == pattern
        with pytest.raises(AttributeError):
            pattern.size = 3

    def test_lists_are_frozen(self):
        assert hash(Window([4, 8])) == hash(Window((4, 8)))
        assert hash(Neighborhood([3, 5], [1, 2])) == hash(Neighborhood((3, 5), (1, 2)))
        assert hash(PooledKeys([4, 8])) == hash(PooledKeys((4, 8)))
        assert hash(Grid([4, 8])) == hash(Grid((4, 8)))

    def test_arrays_are_frozen(self):
        found = [Window(np.array([4, 8])), PooledKeys(np.int64(4)), Neighborhood(torch.tensor(3), (np.int64(1), 2))]
        assert repr(found) == repr([Window((4, 8)), PooledKeys(4), Neighborhood(3, (1, 2))])
        assert {hash(pattern) for pattern in found}

    @pytest.mark.parametrize(
        "mechanism", [attn3d.NonLocal, attn3d.MultiHeadSelfAttention, attn3d.DualAttention, attn3d.PositionAttention]
    )
    def test_every_mechanism_takes_them(self, mechanism):
        x = volume(1, 8, 3, 5, 6).float()
        torch.manual_seed(0)
        module = mechanism(3, 8, pattern=Window((1, 2, 3), shift=True))
        torch.manual_seed(0)
        same = mechanism(3, 8, pattern=["window", {"size": [1, 2, 3], "shift": True}])
        assert torch.equal(module(x), same(x))
        assert "Window(size=(1, 2, 3), shift=True)" in repr(module)

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("windw", r"`pattern` got 'windw'; did you mean 'window'\? available: global, pooled_keys, window, grid"),
            (("window", {"size": 4, "shfit": True}), r"has no option `shfit`; did you mean 'shift'\?"),
            (("window", {}), "the pattern 'window' needs the option `size`"),
            (("neighborhood", {"dilation": 2}), "the pattern 'neighborhood' needs the option `size`"),
            (("window", {"size": 4, "shift": "false"}), "`shift` must be True or False, got 'false'"),
            (("global", {"size": 4}), "the pattern 'global' has no option `size`"),
            (3, r'`pattern` must be a name or \("name", {options}\), got 3'),
            (Global, "`pattern` must be .*, got <class"),
            (Window(0), "`size` must be at least 1, got 0"),
            (Window((4, 8, 8)), r"`size` must be an integer or one for each of 2 axes, got \(4, 8, 8\)"),
            (Window("8"), "`size` must be an integer or one for each of 2 axes, got '8'"),
            (Window(8.0), "`size` must be an integer or one for each of 2 axes, got 8.0"),
            (Window(None), "`size` must be an integer or one for each of 2 axes, got None"),
            (Window(True), "`size` must be an integer or one for each of 2 axes, got True"),
            (Window((4.0, 4)), "`size` must be an integer, got 4.0"),
            (Grid(-2), "`size` must be at least 1, got -2"),
            (Neighborhood(4, stride=5), "`stride` must be at most `size` 4, got 5"),
            (Neighborhood(4, stride=0), "`stride` must be at least 1, got 0"),
            (Neighborhood(3, 0), "`dilation` must be at least 1, got 0"),
            (Neighborhood(3, (1, 2, 3)), "`dilation` must be an integer or one for each of 2 axes"),
            (PooledKeys(0), "`stride` must be at least 1, got 0"),
        ],
        ids=plain_id,
    )
    def test_invalid_specs_are_named(self, pattern, message):
        with pytest.raises((ValueError, TypeError), match=message):
            VolumeAttention(2, 2, pattern=pattern)


@dataclass(frozen=True)
class Stripe(Pattern):
    """A voxel sees the planes across the last axis that lie a multiple of `period` away."""

    period: int

    name = "stripe"

    def along(self, axis, extent, spatial_dims, arange):
        """Along the last axis the positions with equal remainders; along the others all positions."""
        everything = arange(extent)[None]
        if axis < spatial_dims - 1:
            return AxisGroups(everything, everything)
        positions = arange(self.period)[:, None] + self.period * arange((extent + self.period - 1) // self.period)
        return AxisGroups(positions, positions)


def stripes(q, k, v):
    """Attention within `Stripe(3)` of a volume (4, 7), by a mask over all pairs."""
    column = torch.arange(28) % 7
    seen = (column[:, None] - column) % 3 == 0
    return loops.attend(q, k, v, bias=torch.zeros(28, 28, dtype=q.dtype).masked_fill(~seen, -torch.inf)[None, None])


class TestUserDefinedPattern:
    """A pattern of one class is used by its spec, without a change of the library."""

    X = volume(2, 4, 4, 7)

    def self_attention(self, **options):
        spec = ("stripe", {"period": 3})
        return randomise(attn3d.MultiHeadSelfAttention(2, 4, num_heads=2, pattern=spec, **options).double())

    @pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked", "math"])
    def test_every_backend_computes_it(self, backend):
        module, x = self.self_attention(backend=backend), self.X.clone().requires_grad_()
        out = stripes(*module.heads(x))[0]
        expected = module.out(out.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (4, 7))
        found = module(x)
        assert_close(found, expected, 1e-12)
        leaves = [x, *module.parameters()]
        assert_gradients_close(found, leaves, expected, leaves, [str(place) for place in range(len(leaves))])

    def test_a_trace_holds_for_other_sizes(self):
        module = self.self_attention()
        traced = torch.jit.trace(module, (self.X,))
        for shape in ((4, 7), (3, 9), (2, 2), (1, 1)):
            x = volume(1, 4, *shape)
            assert_close(traced(x), module(x), 1e-12)

    def test_rows_of_weights(self):
        module, chosen = self.self_attention(), torch.tensor([0, 9, 27])
        _, expected = stripes(*module.heads(self.X))
        found = module.attention_weights(self.X, chosen)["query"]
        assert_close(found.flatten(3), expected[:, :, chosen], 1e-12)

    def test_a_name_belongs_to_one_class(self):
        with pytest.raises(ValueError, match="`name` 'window' is already the name of Window"):

            class Other(Pattern):
                name = "window"

        @dataclass(frozen=True)
        class Shifted(attn3d.Window):
            """Has no name of its own."""

            shift: bool = True

        assert type(create_pattern(("window", {"size": 4}))) is attn3d.Window
        assert VolumeAttention(2, 1, pattern=Shifted(4)).pattern.shift

    def test_errors_suggest_its_name(self):
        with pytest.raises(ValueError, match=r"`pattern` got 'stripes'; did you mean 'stripe'\?"):
            create_pattern("stripes")
        with pytest.raises(TypeError, match="the pattern 'stripe' needs the option `period`"):
            create_pattern("stripe")
