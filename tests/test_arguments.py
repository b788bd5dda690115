"""Checks of arguments and their error messages."""

import pytest

from attn3d.arguments import (
    boolean,
    check_options,
    nearest,
    odd_per_axis,
    one_of,
    per_axis,
    positive_integer,
    probability,
    read_bytes,
    read_spec,
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
        (lambda: probability("dropout", 1.0), ValueError, r"`dropout` must be in \[0, 1\), got 1.0"),
        (lambda: probability("dropout", "none"), TypeError, "`dropout` must be a number"),
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

    check_options("it", make, {"reduction": 8})
    with pytest.raises(TypeError, match="it has no option `reductoin`; did you mean 'reduction'"):
        check_options("it", make, {"reductoin": 8})
    check_options("anything", lambda **options: None, {"whatever": 1})


def test_nearest_suggests_only_similar_names():
    assert nearest("cbma", ["se", "cbam"]) == "did you mean 'cbam'? available: se, cbam"
    assert nearest("transformer", ["se", "cbam"]) == "available: se, cbam"
