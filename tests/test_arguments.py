"""Checks of arguments and their error messages."""

import functools

import numpy as np
import pytest
import torch

import attn3d
from attn3d.arguments import (
    boolean,
    check_options,
    nearest,
    odd_per_axis,
    one_of,
    per_axis,
    positive_integer,
    positive_numbers,
    probability,
    read_bytes,
    read_spec,
    voxels_on,
)


def test_valid_values_are_returned():
    assert one_of("mode", "sum", ("sum", "product")) == "sum"
    assert positive_integer("channels", 3) == 3
    assert per_axis("size", 4, 3) == (4, 4, 4)
    assert per_axis("size", [2, 7, 7], 3) == (2, 7, 7)
    assert odd_per_axis("kernel_size", (1, 3, 5), 3) == (1, 3, 5)
    assert probability("dropout", 0) == 0.0
    assert boolean("bias", False) is False
    assert [read_bytes("memory_budget", one) for one in (None, 7, "1.5 kib", "2GB")] == [None, 7, 1536, 2 * 10**9]
    assert [read_bytes("memory_budget", one) for one in ("3KB", "3MB", "3MiB", "3TB")] == [
        3000,
        3 * 10**6,
        3 * 2**20,
        3 * 10**12,
    ]


SPACING = np.array([0.5, 0.5, 2.0], np.float32)  # as nibabel's header.get_zooms()


@pytest.mark.parametrize("spacing", [tuple(SPACING), SPACING, torch.from_numpy(SPACING)], ids=type)
def test_a_spacing_from_a_header_is_a_tuple_of_numbers(spacing):
    found = positive_numbers("spacing", spacing, 3)
    assert found == (0.5, 0.5, 2.0)
    assert {type(entry) for entry in found} == {float}
    attention = attn3d.MultiHeadSelfAttention(3, 8, num_heads=1, position=("rope", {"spacing": spacing}))
    assert attention.attention.features.position.spacing == found


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda: (positive_integer("channels", np.int64(3)),), (3,)),
        (lambda: (positive_integer("channels", torch.tensor(3)),), (3,)),
        (lambda: per_axis("size", np.int64(4), 2), (4, 4)),
        (lambda: per_axis("size", np.array([4, 8]), 2), (4, 8)),
        (lambda: odd_per_axis("kernel_size", [np.int32(3), 5], 2), (3, 5)),
        (lambda: positive_numbers("base", np.float32(0.5), 1), (0.5,)),
        (lambda: (probability("dropout", np.float32(0.5)),), (0.5,)),
        (lambda: (read_bytes("memory_budget", np.int64(7)),), (7,)),
        (lambda: (boolean("bias", np.True_),), (True,)),
        (lambda: voxels_on((9, 4), np.array([[8, 3]]))[0], (8, 3)),
        (lambda: voxels_on((9, 4), [torch.tensor([8.0, 3.0])])[0], (8, 3)),
    ],
)
def test_numbers_of_numpy_and_pytorch_become_those_of_python(check, expected):
    assert check() == expected
    assert {type(entry) for entry in check()} == {type(entry) for entry in expected}


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: one_of("mode", "summ", ("sum", "product")), ValueError, "`mode` got 'summ'; did you mean 'sum'"),
        (lambda: positive_integer("channels", 0), ValueError, "`channels` must be at least 1, got 0"),
        (lambda: positive_integer("channels", 2.0), TypeError, "`channels` must be an integer, got 2.0"),
        (lambda: positive_integer("channels", True), TypeError, "`channels` must be an integer, got True"),
        (lambda: per_axis("size", (1, 2), 3), ValueError, r"`size` .* each of 3 axes, got \(1, 2\)"),
        (lambda: per_axis("size", "3", 3), TypeError, "`size` must be an integer or one for each of 3 axes, got '3'"),
        (lambda: odd_per_axis("kernel_size", 4, 3), ValueError, "`kernel_size` must be odd, got 4"),
        (lambda: probability("dropout", 1.0), ValueError, r"`dropout` must be a number in \[0, 1\), got 1.0"),
        (lambda: probability("dropout", "none"), TypeError, "`dropout` must be a number"),
        (lambda: positive_integer("channels", np.float64(2)), TypeError, r"`channels` must be an integer, got 2\.0$"),
        (lambda: positive_integer("channels", np.True_), TypeError, "`channels` must be an integer, got True"),
        (lambda: per_axis("size", np.ones((3, 1), int), 3), TypeError, r"`size` must be an integer, got \(1,\)"),
        (lambda: per_axis("size", np.array([1, 2]), 3), ValueError, r"`size` .* each of 3 axes, got \(1, 2\)"),
        (lambda: positive_numbers("spacing", ("a",) * 3, 3), TypeError, "`spacing` must be a number or 3, got .'a'"),
        (lambda: positive_numbers("spacing", SPACING[:2], 3), ValueError, r"one or 3, got \(0\.5, 0\.5\)"),
        (lambda: positive_numbers("spacing", -SPACING, 3), ValueError, r"positive, one or 3, got \(-0\.5, -0\.5, -2"),
        (lambda: voxels_on((9, 4), []), ValueError, r"`voxels` must be a list of .* as \[\(4, 2\)\], got \[\]"),
        (lambda: voxels_on((9, 4), 3), ValueError, "`voxels` must be a list of positions, .* got 3"),
        (lambda: voxels_on((9, 4), (3, 3)), ValueError, r"`voxels` must be a list of positions, .* got \(3, 3\)"),
        (lambda: voxels_on((9, 4), [(3, 2.5)]), ValueError, r"`voxels` must lie on the grid \(9, 4\), got \(3, 2.5\)"),
        (lambda: voxels_on((9, 4), [(3, -1)]), ValueError, r"`voxels` must lie on the grid \(9, 4\), got \(3, -1\)"),
        (lambda: voxels_on((9, 4), [(3,)]), ValueError, r"`voxels` must lie on the grid \(9, 4\), got \(3,\)"),
        (lambda: boolean("bias", 1), TypeError, "`bias` must be True or False, got 1"),
        (lambda: read_bytes("memory_budget", 1.5), TypeError, "`memory_budget` must be a number of bytes, .* got 1.5"),
        (lambda: read_bytes("memory_budget", True), TypeError, "`memory_budget` must be a number .* got True"),
        (lambda: read_bytes("memory_budget", 0), ValueError, "`memory_budget` must be positive, got 0"),
        (lambda: read_bytes("memory_budget", "0.5B"), ValueError, "`memory_budget` must be positive, got 0"),
        (lambda: read_spec("norm", 3), TypeError, "`norm` must be a name or"),
        (lambda: read_spec("norm", ("group", 8)), TypeError, "`norm` must be a name or"),
    ],
)
def test_invalid_values_are_named(check, error, message):
    with pytest.raises(error, match=message):
        check()


@pytest.mark.parametrize(
    ("spec", "read"),
    [
        ("batch", ("batch", {})),
        (("group", {"num_groups": 8}), ("group", {"num_groups": 8})),
        (["group", {"num_groups": 8}], ("group", {"num_groups": 8})),
        (("batch",), ("batch", {})),
    ],
)
def test_specs(spec, read):
    assert read_spec("norm", spec) == read


def test_unknown_options_are_refused():
    def make(spatial_dims, channels, *, reduction=16):
        """Takes a reduction."""

    check_options("it", make, {"reduction": 8}, positional=2)
    with pytest.raises(TypeError, match="it has no option `reductoin`; did you mean 'reduction'"):
        check_options("it", make, {"reductoin": 8}, positional=2)
    check_options("it", lambda *sizes, reduction=16: None, {"reduction": 8}, positional=2)
    with pytest.raises(TypeError, match="it needs the option `channels`"):
        check_options("it", make, {}, positional=1)
    check_options("anything", lambda **options: None, {"whatever": 1})
    check_options("it", functools.partial(make, 3, reduction=4), {"reduction": 8}, positional=1)
    with pytest.raises(TypeError, match="it has no option `reductoin`; did you mean 'reduction'"):
        check_options("it", functools.partial(make, reductoin=4), {}, positional=2)


def test_nearest_suggests_only_similar_names():
    assert nearest("cbma", ["se", "cbam"]) == "did you mean 'cbam'? available: se, cbam"
    assert nearest("transformer", ["se", "cbam"]) == "available: se, cbam"
