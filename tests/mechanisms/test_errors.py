"""Bad input: one clear error that names the argument in backticks and its value."""

from __future__ import annotations

import re

import pytest
import torch

import attn3d
from tests.configurations import FORMS, OVER_VOXELS, create, of_form, taking
from tests.mechanisms.cases import CASES

pytestmark = pytest.mark.scorecard("errors")

VALUES = [
    *((name, {"reduction": value}) for name in taking("reduction") for value in (0, -4)),
    *((name, {"norm": "bach"}) for name in taking("norm")),
    *((name, {"variant": "papper"}) for name in taking("variant")),
    *((name, {"backend": "fsued"}) for name in OVER_VOXELS),
    *((name, options) for name, case in CASES.items() for options in case.values),
]

KINDS = [
    *((name, {"reduction": 2.0}) for name in taking("reduction")),
    *((name, {"norm": 3}) for name in taking("norm")),
    *((name, options) for name, case in CASES.items() for options in case.kinds),
]


def case_id(case) -> str:
    return str(case) if isinstance(case, str) else "-".join(f"{key}={value}" for key, value in case.items())


def expect(kinds, argument, value, function, *arguments, **keywords):
    """Checks the type of the error, and that its message has the argument in backticks and the value."""
    with pytest.raises(kinds) as raised:
        function(*arguments, **keywords)
    message = str(raised.value)
    assert f"`{argument}`" in message
    if value is not None:
        assert re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w)", message), message


@pytest.mark.parametrize(("name", "options"), VALUES, ids=case_id)
def test_a_value_out_of_range(name, options):
    ((argument, value),) = options.items()
    expect(ValueError, argument, value, attn3d.create_attention, name, spatial_dims=3, channels=8, **options)


@pytest.mark.parametrize(("name", "options"), KINDS, ids=case_id)
def test_a_value_of_the_wrong_kind(name, options):
    ((argument, value),) = options.items()
    expect(
        (TypeError, ValueError),
        argument,
        value,
        attn3d.create_attention,
        name,
        spatial_dims=3,
        channels=8,
        **options,
    )


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(("argument", "value"), [("backend", "sdap"), ("memory_budget", "lots")])
def test_non_local_blocks_without_softmax_check_the_options_of_attention(mode, argument, value):
    expect(ValueError, argument, value, attn3d.NonLocal, 3, 8, mode=mode, **{argument: value})


@pytest.mark.parametrize("order", [None, 3, ("mean",), "mean"])
def test_the_order_of_the_maps_of_cbam(order):
    expect(ValueError, "order", order, attn3d.CBAM, 3, 8, order=order)


@pytest.mark.parametrize("name", CASES)
def test_dimensions_and_channels(name, count_cases):
    def make(spatial_dims, channels):
        return create(name, spatial_dims=spatial_dims, channels=channels)

    for spatial_dims in (0, 4, "3", 3.0, True):
        expect((TypeError, ValueError), "spatial_dims", spatial_dims, make, spatial_dims, 8)
        count_cases()
    for channels in (0, -1):
        expect(ValueError, "channels", channels, make, 3, channels)
        count_cases()
    expect(TypeError, "channels", 8.0, make, 3, 8.0)
    count_cases()


@pytest.mark.parametrize("name", taking("reduction"))
def test_an_unknown_option_is_refused_with_the_nearest(name):
    with pytest.raises(TypeError, match=r"`reductoin`.*reduction"):
        create(name, spatial_dims=3, channels=8, reductoin=2)


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(TypeError, match="has no option `variety`"):
        create(name, spatial_dims=3, channels=8, variety="paper")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'cbma'.*'cbam'.*available.*non_local"):
        attn3d.create_attention("cbma", spatial_dims=3, channels=8)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("shape", "wanted", "got"),
    [
        ((2, 5, 4, 4, 4), 8, 5),
        ((2, 8, 4, 4), 5, 4),
        ((8, 4, 4, 4), 5, 4),
        ((2, 8, 4, 4, 4, 4), 5, 6),
        ((2, 8, 4, 0, 4), None, 0),
    ],
    ids=str,
)
def test_an_input_that_does_not_fit(name, shape, wanted, got):
    module = create(name, spatial_dims=3, channels=8)
    for function in (module, module.attention_weights):
        expect(ValueError, "x", wanted, function, torch.ones(shape))
        expect(ValueError, "x", got, function, torch.ones(shape))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_an_input_that_is_not_floating_point(name, dtype):
    module = create(name, spatial_dims=3, channels=8)
    for function in (module, module.attention_weights):
        with pytest.raises(TypeError, match=f"`x` must be floating point, got {dtype}"):
            function(torch.ones(2, 8, 4, 4, 4, dtype=dtype))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("x", [torch.ones(2, 8, 4, 4, 4).numpy(), [1.0], None], ids=["array", "list", "None"])
def test_an_input_that_is_not_a_tensor(name, x):
    module = attn3d.create_attention(name, spatial_dims=3, channels=8)
    for function in (module, module.attention_weights):
        with pytest.raises(TypeError, match=rf"`x` must be a torch\.Tensor, got {type(x).__name__}"):
            function(x)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.alone is not None])
@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (torch.ones(2, 8, 4, 4).numpy(), r"`signal` must be a torch\.Tensor, got ndarray"),
        (torch.ones(2, 8, 4, 4, dtype=torch.int32), r"`signal` must be floating point, got torch\.int32"),
    ],
    ids=["array", "integers"],
)
def test_a_signal_that_is_not_a_tensor_of_floating_point(name, signal, message):
    module = attn3d.create_attention(name, spatial_dims=2, channels=8)
    for function in (module, module.attention_weights):
        with pytest.raises(TypeError, match=message):
            function(torch.ones(2, 8, 4, 4), signal)


@pytest.mark.parametrize(("name", "pattern"), [("mhsa", "global"), ("mhsa", "axial"), ("non_local", "axial")])
@pytest.mark.parametrize("queries", [[3], torch.tensor([3.0]), torch.tensor([3], dtype=torch.uint8), 3], ids=str)
def test_queries_that_are_not_a_tensor_of_indices(name, pattern, queries):
    module = attn3d.create_attention(name, spatial_dims=2, channels=8, pattern=pattern)
    with pytest.raises(TypeError, match=r"`queries` must be a torch\.Tensor of int64 or int32 voxel indices, got"):
        module.attention_weights(torch.ones(2, 8, 4, 4), queries)


@pytest.mark.parametrize("name", ["mhsa", "non_local", "danet", "paired"])
@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([-1], r"`queries` must be indices from 0 to 15, got -1$"),
        ([3, 16], r"`queries` must be indices from 0 to 15, got 16$"),
        ([[3, 4]], r"`queries` must be \(Q,\), got the shape \(1, 2\)$"),
        (3, r"`queries` must be \(Q,\), got the shape \(\)$"),
    ],
)
def test_queries_that_are_not_voxels(name, queries, message):
    module = attn3d.create_attention(name, spatial_dims=2, channels=8)
    with pytest.raises(ValueError, match=message):
        module.attention_weights(torch.ones(2, 8, 4, 4), torch.tensor(queries))


class Rows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mechanism = attn3d.create_attention("mhsa", spatial_dims=2, channels=8, num_heads=2)

    def forward(self, x, queries):
        return self.mechanism.attention_weights(x, queries)["query"]


def test_queries_in_an_export_and_on_the_meta_device():
    """Their values are not known."""
    rows, x, queries = Rows().eval(), torch.randn(2, 8, 4, 4), torch.tensor([3, 7])
    torch.testing.assert_close(torch.export.export(rows, (x, queries)).module()(x, queries), rows(x, queries))
    assert rows.to("meta")(x.to("meta"), queries.to("meta")).shape == (2, 2, 2, 4, 4)


@pytest.mark.parametrize("name", taking("variant"))
def test_a_form_of_none_is_refused(name):
    """A null in a configuration would select parts of both forms."""
    with pytest.raises(ValueError, match="`variant` got None; available: compact, paper"):
        create(name, spatial_dims=3, channels=8, variant=None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("spatial_dims", 4), ("in_channels", 3), ("out_channels", 0), ("num_classes", 0)],
)
def test_the_dual_attention_head(argument, value):
    arguments = {"spatial_dims": 3, "in_channels": 16, "out_channels": 4, "num_classes": 2}
    expect(ValueError, argument, value, attn3d.DualAttentionHead, **arguments | {argument: value})


@pytest.mark.scorecard  # no error
@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_a_mechanism_says_its_form(name, variant):
    module = create(name, spatial_dims=3, channels=8, **of_form(name, variant))
    assert (f"variant='{variant}'" in repr(module)) == (name in taking("variant"))
