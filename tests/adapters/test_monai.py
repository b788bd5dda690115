"""The registry as MONAI's layer factory."""

import pytest
import torch
from monai.networks.layers.factories import LayerFactory, split_args

import attn3d
from attn3d.adapters.monai import Attention
from attn3d.mechanisms.registry import REGISTRY


def test_it_is_a_layer_factory():
    assert isinstance(Attention, LayerFactory)
    assert Attention.names == tuple(attn3d.list_attention())
    assert "cbam" in Attention
    assert "CBAM" in Attention
    assert "conv" not in Attention


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_it_makes_mechanisms(spatial_dims):
    module = Attention["cbam", spatial_dims](channels=8, reduction=2)
    assert isinstance(module, attn3d.CBAM)
    assert module(torch.randn((2, 8) + (4,) * spatial_dims)).shape == (2, 8) + (4,) * spatial_dims


def test_specs_have_monais_form():
    name, options = split_args(("se", {"reduction": 2}))
    assert Attention[name, 3](channels=8, **options).squeeze.out_features == 4
    assert isinstance(Attention[Attention.ECA, 2](channels=8), attn3d.ECA)


def test_mechanisms_registered_later_are_found(monkeypatch):
    monkeypatch.setitem(REGISTRY, "mine", attn3d.ECA)
    assert isinstance(Attention["mine", 3](channels=8), attn3d.ECA)


def test_names_need_not_be_in_lower_case(monkeypatch):
    monkeypatch.setitem(REGISTRY, "MyGate", attn3d.ECA)
    for name in ("MyGate", "mygate", Attention.MyGate):
        assert name in Attention
        assert isinstance(Attention[name, 3](channels=8), attn3d.ECA)
    monkeypatch.setitem(REGISTRY, "mygate", attn3d.SqueezeExcitation)
    assert isinstance(Attention["MyGate", 3](channels=8), attn3d.ECA)
    assert isinstance(Attention["mygate", 3](channels=8), attn3d.SqueezeExcitation)


def test_refusals():
    with pytest.raises(ValueError, match="`name` must be a registered mechanism, got 'cbma'; did you mean 'cbam'"):
        Attention["cbma", 3]
    with pytest.raises(ValueError, match="must have one number of dimensions"):
        Attention["cbam"]
    with pytest.raises(TypeError, match=r"must be a name or .* got 3"):
        Attention[3, "cbam"]
    with pytest.raises(TypeError, match="no option `reductoin`"):
        Attention["se", 3](channels=8, reductoin=2)
