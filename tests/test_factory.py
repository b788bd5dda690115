"""The registry and the factory of mechanisms."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import attn3d
from tests.configurations import create, taking
from tests.mechanisms.cases import CASES


class Same(nn.Module):
    def __init__(self, spatial_dims, channels, *, strength=1.0):
        super().__init__()
        self.strength = strength

    def forward(self, x):
        return x * self.strength


def test_the_names_are_those_of_the_cases():
    assert attn3d.list_attention() == sorted(CASES)


@pytest.mark.parametrize("name", attn3d.list_attention())
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_every_name_makes_its_mechanism(name, spatial_dims):
    module = create(name, spatial_dims=spatial_dims, channels=8)
    x = torch.randn((2, 8) + (4, 3, 5)[:spatial_dims])
    assert module(x).shape == x.shape
    assert (module.spatial_dims, module.channels) == (spatial_dims, 8)
    assert module.variant == ("compact" if name in taking("variant") else None)


@pytest.mark.parametrize(
    "spec",
    [
        ("cbam", {"reduction": 4}),
        ["cbam", {"reduction": 4}],
        attn3d.CBAM,
        (attn3d.CBAM, {"reduction": 4}),
        functools.partial(attn3d.CBAM, reduction=4),
    ],
    ids=str,
)
def test_every_form_of_a_spec(spec):
    options = {"reduction": 4} if spec is attn3d.CBAM else {}
    module = attn3d.create_attention(spec, spatial_dims=3, channels=16, **options)
    assert isinstance(module, attn3d.CBAM)
    assert module.squeeze.out_features == 4


def test_options_of_the_call_override_the_spec():
    module = attn3d.create_attention(("se", {"reduction": 2}), spatial_dims=3, channels=64, reduction=8)
    assert module.squeeze.out_features == 8


def test_a_pattern_is_created_from_plain_data():
    spec = ["non_local", {"pattern": ["window", {"size": [2, 4, 4], "shift": True}]}]
    module = attn3d.create_attention(spec, spatial_dims=3, channels=8)
    assert module.pairwise.pattern == attn3d.Window((2, 4, 4), shift=True)


def test_numbers_of_numpy_make_modules_that_can_be_scripted():
    options = {"branches": np.int64(3), "groups": np.int64(4), "min_channels": np.int64(2), "reduction": np.int64(2)}
    module = attn3d.create_attention("sk", spatial_dims=np.int64(2), channels=np.int64(8), **options)
    x = torch.randn(1, 8, 4, 5)
    torch.testing.assert_close(torch.jit.script(module.eval())(x), module(x))


def test_a_user_defined_mechanism(registries):
    attn3d.register_attention("same")(Same)
    assert "same" in attn3d.list_attention()
    assert attn3d.create_attention("same", spatial_dims=3, channels=8, strength=2.0).strength == 2.0


def test_options_may_have_the_names_of_arguments_of_others(registries):
    @attn3d.register_attention("mine")
    class Mine(torch.nn.Identity):
        def __init__(self, spatial_dims, channels, *, heads=4, head_dim=None):
            super().__init__()
            self.heads = heads

    assert attn3d.create_attention("mine", spatial_dims=3, channels=64, heads=8).heads == 8
    with pytest.raises(TypeError, match="Mine has no option `channels`"):
        attn3d.create_attention(("mine", {"channels": 3}), spatial_dims=3, channels=64)


def test_a_name_of_a_partial_that_is_registered_twice(registries):
    attn3d.register_attention("same")(functools.partial(Same, strength=2.0))
    with pytest.raises(ValueError, match=r"`name` 'same' is already registered by functools\.partial\("):
        attn3d.register_attention("same")(Same)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attn3d.create_attention("cbma", spatial_dims=3, channels=8), ValueError, "did you mean 'cbam'"),
        (
            lambda: attn3d.create_attention("cbam", spatial_dims=3, channels=8, kernel=3),
            TypeError,
            "CBAM has no option `kernel`; did you mean 'kernel_size'",
        ),
        (
            lambda: attn3d.create_attention(functools.partial(attn3d.CBAM), spatial_dims=3, channels=8, kernel=3),
            TypeError,
            "CBAM.* has no option `kernel`; did you mean 'kernel_size'",
        ),
        (lambda: attn3d.create_attention(3, spatial_dims=3, channels=8), TypeError, "`spec` must be a name"),
        (
            lambda: attn3d.create_attention((attn3d.CBAM, 8), spatial_dims=3, channels=8),
            TypeError,
            "`spec` must be a name",
        ),
        (
            lambda: attn3d.create_attention(lambda *_: None, spatial_dims=3, channels=8),
            TypeError,
            "`spec` must create a torch.nn.Module, got None",
        ),
        (
            lambda: attn3d.register_attention("se")(Same),
            ValueError,
            "`name` 'se' is already registered by SqueezeExcitation",
        ),
        (lambda: attn3d.register_attention("my attention")(Same), ValueError, "`name` must be an identifier"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
