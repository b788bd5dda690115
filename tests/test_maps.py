"""Attention maps of inserted attention and of networks' own attention."""

import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNETR, AttentionUnet, SwinUNETR, UNet
from torch import nn

import attn3d
from tests.configurations import OF_ONE_MAP
from tests.marks import some


def unet(spatial_dims: int = 3) -> UNet:
    return UNet(spatial_dims, 1, 2, channels=(8, 16, 32), strides=(2, 2))


@pytest.mark.parametrize("spatial_dims", some([2, 3], lambda dims: dims == 2))
@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_every_mechanism_has_maps_on_the_grid(name, spatial_dims):
    if name == "sk":
        net = attn3d.insert_attention(unet(spatial_dims), name, at="encoder", branches=3)
    else:
        net = attn3d.insert_attention(unet(spatial_dims), name, at="encoder")
    x = torch.randn((2, 1) + (16, 12, 20)[:spatial_dims])
    grid = x.shape[2:]
    maps = attn3d.attention_maps(net, x, voxels=[[3] * spatial_dims, [5] * spatial_dims])
    assert list(maps) == [site.name for site in attn3d.attention_sites(unet(spatial_dims)) if site.kind == "encoder"]
    shapes = {
        "channel_map": (2, *grid),
        "spatial": (2, *grid),
        "gate": (2, *grid),
        "axes_map": (2, *grid),
        **{f"axis{axis}": (2, size) for axis, size in enumerate(grid)},
    }
    for found in maps.values():
        assert found
        for key, value in found.items():
            assert torch.isfinite(value).all()
            if key in shapes:
                assert value.shape == shapes[key]
            elif key == "query":
                assert value.shape[0] == 2
                assert value.shape[2:] == (2, *grid)


def test_gates_are_those_of_the_forward_pass():
    net = attn3d.insert_attention(unet(), "se", at="encoder").eval()
    x = torch.randn(1, 1, 16, 16, 16)
    seen = []
    mechanism = next(module for module in net.modules() if isinstance(module, attn3d.SqueezeExcitation))
    mechanism.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    gates = attn3d.attention_maps(net, x)["encoder:model.0"]["channel"]
    before, after = seen[0]
    torch.testing.assert_close(before * gates[:, :, None, None, None], after)


def test_a_row_sums_to_one_where_the_map_has_the_grid_of_the_image():
    net = attn3d.insert_attention(unet(), "non_local", at="path:model.0.conv", input_shape=(1, 1, 16, 16, 16))
    mechanism = next(module for module in net.modules() if isinstance(module, attn3d.NonLocal))
    x = torch.randn(1, 8, 6, 6, 6)
    rows = mechanism.attention_weights(x, torch.tensor([0, 7]))["query"]
    torch.testing.assert_close(rows.flatten(3).sum(-1), torch.ones(1, 1, 2))


def test_modes_and_hooks_are_restored():
    net = attn3d.insert_attention(unet(), "cbam", at=("encoder", "decoder"))
    net.train()
    net.model[0].eval()
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_pre_hooks) for module in net.modules()]
    attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16))
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in net.modules()] == hooks


def test_several_mechanisms_at_a_site_have_different_names():
    net = attn3d.insert_attention(unet(), "se", at="bottleneck")
    attn3d.insert_attention(net, "coord", at="bottleneck", identity=True)
    maps = attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16))
    (first, second) = maps
    assert second == f"{first}#1"
    assert "channel" in maps[first]
    assert "axes_map" in maps[second]


def test_the_maps_of_several_networks_have_the_path_of_the_network():
    net = torch.nn.Sequential()
    net.add_module("coarse", unet(2))
    net.add_module("middle", torch.nn.Conv2d(2, 1, 1))
    net.add_module("fine", unet(2))
    x = torch.randn(1, 1, 16, 16)
    attn3d.insert_attention(net.coarse, "se", at="encoder", stages=0)
    assert list(attn3d.attention_maps(net, x)) == ["encoder:model.0"]
    for name in ("se", "simam"):
        attn3d.insert_attention(net.fine, name, at="encoder", stages=0)
    maps = attn3d.attention_maps(net, x)
    assert list(maps) == ["encoder:coarse.model.0", "encoder:fine.model.0", "encoder:fine.model.0#1"]
    torch.testing.assert_close(
        maps["encoder:fine.model.0"], attn3d.attention_maps(net.fine, net.middle(net.coarse(x)))["encoder:model.0"]
    )


@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_an_image_without_a_batch_axis_is_refused_as_by_the_network(name):
    net = attn3d.insert_attention(unet(), name, at="encoder")
    x = torch.randn(1, 16, 16, 16)
    for function in (net, lambda x: attn3d.attention_maps(net, x), lambda x: attn3d.constant_gates(net, [x, x])):
        with pytest.raises(ValueError, match=r"`x` must have 5 dimensions \(batch, channels, 3 spatial\), got 4"):
            function(x)


def test_maps_of_a_metatensor_are_plain_tensors():
    net, _, _ = own("gates")
    for name, at in {"cbam": "encoder", "coord": "decoder", "mhsa": "bottleneck", "gc": "skip"}.items():
        attn3d.insert_attention(net, name, at=at)
    x = torch.randn(1, 1, 16, 12, 8)
    maps = attn3d.attention_maps(net, MetaTensor(x))
    assert {type(weight) for found in maps.values() for weight in found.values()} == {torch.Tensor}
    torch.testing.assert_close(maps, attn3d.attention_maps(net, x))


def test_a_module_name_may_contain_the_sign_that_numbers_mechanisms():
    net = torch.nn.Sequential()
    net.add_module("a#b", torch.nn.Conv2d(1, 4, 1))
    net.add_module("head", torch.nn.Conv2d(4, 2, 1))
    for name in ("se", "simam"):
        attn3d.insert_attention(net, name, at="path:a#b", input_shape=(1, 1, 6, 5))
    assert list(attn3d.attention_maps(net, torch.randn(1, 1, 6, 5))) == ["path:a#b", "path:a#b#1"]


def test_a_user_defined_mechanism_without_weights_has_no_maps():
    class Same(torch.nn.Module):
        def __init__(self, spatial_dims, channels):
            super().__init__()

        def forward(self, x):
            return x

    net = attn3d.insert_attention(unet(), Same, at="bottleneck")
    assert list(attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16)).values()) == [{}]


def test_the_channel_map_is_that_of_the_map_that_the_gate_multiplies():
    """In `cpca` this is an inner map. The context of `gc` multiplies nothing."""

    def inner(cpca, x):
        x = torch.nn.functional.gelu(cpca.pointwise(x))
        return x * cpca.channel_gate(x)

    x = torch.randn(1, 1, 8, 8)
    for name, gated in {"se": lambda se, x: se(x), "cpca": inner, "gc": None}.items():
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.AvgPool2d(2)).eval()
        given = net[0](x)
        attn3d.insert_attention(net, name, at="path:0", input_shape=x.shape)
        maps = attn3d.attention_maps(net, x)["path:0"]
        if gated is None:
            assert maps.keys() == {"spatial", "added"}
        else:
            torch.testing.assert_close(maps["channel_map"], gated(net[0].attn3d[0], given).abs().mean(1))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_has_the_maps_of_the_network(in_place):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AvgPool2d(2)).eval()
    attn3d.insert_attention(net, "se", at="path:0", input_shape=(1, 1, 8, 8))
    x = torch.randn(1, 1, 8, 8)
    expected = attn3d.attention_maps(net, x)
    if in_place:
        net.compile(backend="eager")
    compiled = net if in_place else torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(x)
    maps = attn3d.attention_maps(compiled, x)
    assert maps["path:0"].keys() == {"channel", "channel_map"}
    torch.testing.assert_close(maps, expected)


def test_own_attention_of_a_compiled_network_has_the_name_that_it_has_in_the_network():
    net, _, x = own("gates")
    maps = attn3d.attention_maps(torch.compile(net, backend="eager"), x)
    torch.testing.assert_close(maps, attn3d.attention_maps(net, x))


def test_the_compiler_is_not_imported_for_maps(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(torch.compiler, "set_stance", None)
    net = attn3d.insert_attention(unet(2), "se", at="encoder")
    assert attn3d.attention_maps(net, torch.randn(1, 1, 16, 16))


def test_refusals():
    net = attn3d.insert_attention(unet(), "se", at="encoder")
    with pytest.raises(TypeError, match=r"`x` must be a torch\.Tensor"):
        attn3d.attention_maps(net, [[0.0]])
    with pytest.raises(TypeError, match="`site` must be a name or a list of names, got 3"):
        attn3d.attention_maps(net, torch.zeros(1, 1, 16, 16, 16), site=3)
    with pytest.raises(ValueError, match="`net` must have attention, got none"):
        attn3d.attention_maps(unet(), torch.randn(1, 1, 16, 16, 16))
    net = attn3d.insert_attention(unet(), "mhsa", at="bottleneck")
    with pytest.raises(ValueError, match=r"`voxels` must lie on the grid \(16, 16, 16\), got \(16, 0, 0\)"):
        attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16), voxels=[(16, 0, 0)])


def test_the_weights_of_selective_kernels_include_the_convolution():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.nn.AvgPool2d(2))
    attn3d.insert_attention(net, "sk", at="conv", branches=3, identity=True)
    x = torch.randn(2, 4, 8, 8)
    [found] = attn3d.attention_maps(net, x).values()
    branches = found["branch"]
    assert branches.shape == (2, 3, 4)
    torch.testing.assert_close(branches.sum(1), torch.ones(2, 4))

    convolved = torch.nn.functional.conv2d(x, net[0].weight, padding=1)
    beside = net[0].attn3d_kernel[0].attention.eval()
    maps = beside.convolve(x, convolved)
    merged = sum(weight[:, :, None, None] * map_ for weight, map_ in zip(branches.unbind(1), maps, strict=True))
    torch.testing.assert_close(beside(x, convolved), merged)


def test_a_branch_of_the_network_that_does_not_run_has_no_maps():
    class Either(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(1, 4, 1)
            self.first = True

        def forward(self, x):
            return (self.one(x) if self.first else self.two(x)).mean(1)

    net = Either()
    attn3d.insert_attention(net, "se", at="path:one", input_shape=(1, 1, 8, 8))
    net.first = False
    assert attn3d.attention_maps(net, torch.randn(1, 1, 8, 8)) == {"path:one": {}}


OWN = {
    "gates": (lambda: AttentionUnet(3, 1, 2, channels=(4, 8), strides=(2,)), "own:model.1.attention", (16, 12, 8)),
    "windows": (
        lambda: SwinUNETR(1, 2, feature_size=12, depths=(2, 1, 1, 1), num_heads=(2, 2, 2, 2), window_size=4),
        "own:swinViT.layers1.0.blocks.1.attn",
        (32, 32, 64),
    ),
    "patches": (
        lambda: UNETR(1, 2, (32, 32, 16), feature_size=4, hidden_size=8, mlp_dim=8, num_heads=2, save_attn=True),
        "own:vit.blocks.11.attn",
        (32, 32, 16),
    ),
}


def own(name):
    """A network with its own attention, the name of an attention site, and an image."""
    build, site, shape = OWN[name]
    return build().eval(), site, torch.randn(1, 1, *shape)


@pytest.mark.parametrize("name", OWN)
def test_a_networks_own_attention_lies_on_the_grid_of_the_image(name):
    net, site, x = own(name)
    maps = attn3d.attention_maps(net, torch.cat([x, -x]), voxels=[(3, 4, 5), (10, 11, 7)])
    [(key, weights)] = maps[site].items()
    assert key == ("spatial" if name == "gates" else "query")
    assert weights.shape == (2, *(() if name == "gates" else (2, 2)), *x.shape[2:])
    assert 0 <= weights.min() < weights.max() <= 1
    if name == "patches":
        assert list(maps) == [f"own:vit.blocks.{block}.attn" for block in range(12)]


def test_a_window_surrounds_its_voxel():
    """16 tokens per axis in windows of 4, shifted by 2 in the second block: tokens 6 to 9 are the window of token 8."""
    net, site, x = own("windows")
    rows = attn3d.attention_maps(net, x, voxels=[(17, 1, 63)], site=site)[site]["query"]
    seen = (rows[0, 0, 0] > 1e-6).nonzero()  # masked pairs have a score of -100
    assert seen.amin(0).tolist() == [11, 0, 59]  # interpolation adds half a token
    assert seen.amax(0).tolist() == [20, 4, 63]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_the_state_of_the_network_is_restored(name, fails):
    """Hooks, modes, flags, parameters and statistics, also if the forward pass raises."""
    net, _, x = own(name)
    net.train()
    next(iter(net.children())).eval()

    def state():
        hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in net.modules()]
        flags = [(module.training, getattr(module, "save_attn", None)) for module in net.modules()]
        return hooks, flags, {key: value.clone() for key, value in net.state_dict().items()}

    hooks, flags, tensors = state()
    if fails:
        with pytest.raises(Exception):  # noqa: B017, PT011 networks raise any exception on two channels
            attn3d.attention_maps(net, x.expand(-1, 2, -1, -1, -1))
    else:
        attn3d.attention_maps(net, x)
    assert state()[:2] == (hooks, flags)
    for key, value in state()[2].items():
        assert torch.equal(value, tensors[key]), key


@pytest.mark.parametrize("name", OWN)
def test_the_output_does_not_change(name):
    net, _, x = own(name)
    with torch.no_grad():
        before = net(x)
        attn3d.attention_maps(net, x)
        assert torch.equal(net(x), before)


def test_maps_of_inserted_and_own_attention_have_the_same_form():
    net, site, x = own("gates")
    attn3d.insert_attention(net, "mhsa", at="bottleneck")
    x = MetaTensor(x)
    maps = attn3d.attention_maps(net, x)
    inserted, shown = maps
    assert (inserted.split(":")[0], shown) == ("bottleneck", site)
    assert maps[inserted]["query"].shape[3:] == maps[site]["spatial"].shape[1:] == x.shape[2:]
    assert list(attn3d.attention_maps(net, x, site=site)) == [site]
    with pytest.raises(ValueError, match=r"`site` got 'own:model\.attention'.*own:model\.1\.attention"):
        attn3d.attention_maps(net, x, site="own:model.attention")


def attended(name, **options):
    """A network with a mechanism whose map has the grid of the image; the mechanism, and its input for an image."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.AvgPool2d(2)).eval()
    attn3d.insert_attention(net, name, at="path:0", input_shape=(1, 1, 5, 7), **options)
    return net, net[0].attn3d[0], lambda x: nn.functional.conv2d(x, net[0].weight, net[0].bias, padding=1)


def test_rows_are_those_of_each_head_and_voxel():
    net, mechanism, before = attended("mhsa", num_heads=3)
    x = torch.randn(2, 1, 5, 7)
    found = attn3d.attention_maps(net, x, voxels=[(1, 2), (4, 6)])["path:0"]["query"]
    expected = mechanism.attention_weights(before(x), torch.tensor([1 * 7 + 2, 4 * 7 + 6]))["query"]
    assert found.shape == (2, 3, 2, 5, 7)
    torch.testing.assert_close(found, expected)


def test_gates_along_axes_and_their_product_are_means_over_the_channels():
    net, mechanism, before = attended("coord")
    x = torch.randn(2, 1, 5, 7)
    found = attn3d.attention_maps(net, x)["path:0"]
    gates = mechanism.attention_weights(before(x))
    torch.testing.assert_close(found["axis0"], gates["axis0"].mean(1)[..., 0])
    torch.testing.assert_close(found["axis1"], gates["axis1"].mean(1)[:, 0])
    torch.testing.assert_close(found["axes_map"], (gates["axis0"] * gates["axis1"]).mean(1))


def test_names_of_maps_do_not_depend_on_compiling():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("one", "two"):
                net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU())
                attn3d.insert_attention(net, "se", at="path:0", input_shape=(1, 1, 4, 4, 4))
                self.add_module(name, torch.compile(net))

        def forward(self, x):
            return self.one(x) + self.two(x)

    assert [*attn3d.attention_maps(Pair(), torch.randn(1, 1, 4, 4, 4))] == ["path:one.0", "path:two.0"]
