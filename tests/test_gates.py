"""Gates that do not depend on their input: detection, and warnings at insertion."""

import functools
import warnings

import pytest
import torch
from monai.networks.nets import AttentionUnet, DynUNet, SegResNet, UNet
from torch import nn

import attn3d


def volumes(count: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(count, 1, 16, 16) * torch.linspace(0.5, 3, count)[:, None, None, None]


def dynunet() -> DynUNet:
    torch.manual_seed(0)
    return DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], res_block=True)


@pytest.mark.filterwarnings("ignore:'se' takes a mean")
def test_a_mean_is_constant_after_an_instance_norm_but_not_after_the_activation() -> None:
    net = attn3d.insert_attention(dynunet(), "se", at=("residual", "block"), stages=(0, 1), reduction=1)
    found = attn3d.constant_gates(net, volumes().split(2))
    assert list(found) == ["residual:input_block.norm2 channel", "residual:downsamples.0.norm2 channel"]
    assert max(found.values()) < 1e-6


def test_hidden_units_of_zero_give_a_constant_gate() -> None:
    torch.manual_seed(0)
    net = attn3d.insert_attention(UNet(2, 1, 2, (4, 8), (2,)), "cbam", at="encoder", reduction=1)
    mechanism = next(module for module in net.modules() if isinstance(module, attn3d.CBAM))
    assert attn3d.constant_gates(net, [volumes()]) == {}
    nn.init.constant_(mechanism.squeeze.weight, 0.0)
    assert attn3d.constant_gates(net, [volumes()]) == {"encoder:model.0 channel": 0.0}


def test_kinds_of_batches() -> None:
    net = attn3d.insert_attention(UNet(2, 1, 2, (4, 8), (2,)), "coord", at="encoder")
    x = volumes()
    expected = attn3d.constant_gates(net, [x], tolerance=1.0)
    assert {name.split()[1] for name in expected} == {"axis0", "axis1"}
    for batch in ({"image": x}, {"image": {"data": x}}, (x, x), [x]):
        assert attn3d.constant_gates(net, [batch], tolerance=1.0) == expected
    assert attn3d.constant_gates(net, [x, x[:0]], tolerance=1.0) == expected
    with pytest.raises(ValueError, match=r"`loader` must yield at least two volumes, got 1"):
        attn3d.constant_gates(net, [x[:1]])
    for wrong in ({"label": x}, {"image": {"label": x}}, 3):
        with pytest.raises(TypeError, match="`loader` must yield images"):
            attn3d.constant_gates(net, [wrong])


def test_voxels_of_volumes_of_different_sizes_are_compared() -> None:
    net = attn3d.insert_attention(UNet(2, 1, 2, (4, 8), (2,)), "cbam", at="encoder", variant="paper")
    x = volumes()
    assert attn3d.constant_gates(net, [x, x[..., :8]]) == {"encoder:model.0 spatial": 0.0}  # its norm starts at 0


def test_a_constant_gate_of_one_of_several_networks() -> None:
    nets = [attn3d.insert_attention(UNet(2, 1, 1, (4, 8), (2,)), "se", at="encoder") for _ in range(2)]
    nn.init.constant_(nets[1].model[0].attn3d[0].squeeze.weight, 0.0)
    assert attn3d.constant_gates(nn.Sequential(*nets), [volumes()]) == {"encoder:1.model.0 channel": 0.0}


def test_nothing_is_inserted() -> None:
    for net in (UNet(2, 1, 2, (4, 8), (2,)), AttentionUnet(2, 1, 2, (4, 8), (2,))):
        with pytest.raises(ValueError, match="`net` must have inserted attention, got none"):
            attn3d.constant_gates(net, [volumes()])


def test_a_constant_gate_of_a_compiled_network() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    attn3d.insert_attention(net, "se", at="path:0", input_shape=(1, 1, 16, 16))
    nn.init.constant_(net[0].attn3d[0].squeeze.weight, 0.0)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(volumes())
    assert attn3d.constant_gates(compiled, [volumes()]) == {"path:0 channel": 0.0}


@pytest.mark.parametrize("name", ["se", "eca", "gc"])
def test_insertion_warns_and_names_the_site_after_the_activation(name: str) -> None:
    with pytest.warns(UserWarning, match=rf"'{name}' takes a mean .* at 'block:input_block'"):
        attn3d.insert_attention(dynunet(), name, at="residual", stages=0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    bound = functools.partial(type(attn3d.create_attention(name, spatial_dims=2, channels=4)))
    for spec in (name, bound):
        with pytest.warns(UserWarning, match=r"at path:1 is the bias of .* after the activation$"):
            attn3d.insert_attention(net, spec, at="path:1")


@pytest.mark.parametrize(
    ("net", "name", "at"),
    [
        (dynunet, "se", "block"),
        (dynunet, "cbam", "residual"),  # also uses maxima
        (lambda: SegResNet(2, 8), "se", "residual"),  # its norms come first
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(True), nn.Tanh()), "eca", "path:2"),
    ],
)
def test_it_does_not_warn_elsewhere(net, name: str, at: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attn3d.insert_attention(net(), name, at=at, input_shape=(1, 1, 32, 32))
