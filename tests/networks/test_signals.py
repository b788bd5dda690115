"""Attention gates at the skips of networks; the gating signal is the decoder's map that is joined with the skip."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, ResNet, SegResNet, SegResNetDS, SwinUNETR, UNet
from torch import Tensor, nn

import attn3d
from attn3d.insertion.attach import containers
from tests.adapters import stand_in
from tests.networks.comparing import anatomy, equal, randomise, saved_and_loaded
from tests.networks.every_way import EveryWay, maps
from tests.networks.zoo import CONFIGURATIONS, Configuration

pytestmark = pytest.mark.scorecard("insertion")
stand_in.install()  # used if nnU-Net's networks are not installed


def plain_conv_unet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    sizes = (3, (4, 8, 8), nn.Conv2d, [(3, 3)] * 3, [(1, 1), (2, 2), (2, 2)], [1] * 3, 2, [1] * 2)
    like = {"conv_bias": True, "norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}}
    return PlainConvUNet(1, *sizes, **like, nonlin=nn.LeakyReLU, nonlin_kwargs={})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2)),
    "BasicUNet": lambda: BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)),
    "DynUNet": lambda: DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8]),
    "SegResNet": lambda: SegResNet(2, 8, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "SegResNetDS": lambda: SegResNetDS(2, 4, blocks_down=(1, 1, 1)),
    "SwinUNETR": lambda: SwinUNETR(1, 2, spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1)),
    "PlainConvUNet": plain_conv_unet,
}
DEFAULT = [("SegResNet", "compact"), ("PlainConvUNet", "compact")]


def image(name: str, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 1, *[64 if name == "SwinUNETR" else 32] * 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        pytest.param(name, variant, marks=[] if name == "UNet" or (name, variant) in DEFAULT else [pytest.mark.nightly])
        for name in NETWORKS
        for variant in ("compact", "paper")
    ],
)
def test_at_every_skip(name: str, variant: str) -> None:
    """Trains, exports, saves, loads a checkpoint of the plain network, and removes the gates."""
    torch.manual_seed(0)
    net, x = NETWORKS[name]().eval(), image(name)
    plain, before, checkpoint = net(x), anatomy(net), copy.deepcopy(net.state_dict())
    skips = [site for site in attn3d.attention_sites(net, x.shape) if site.kind == "skip"]
    assert all(site.gating_channels for site in skips)

    attn3d.insert_attention(net, "attention_gate", at="skip", variant=variant)
    [inserted] = attn3d.inserted_attention(net)
    assert inserted["at"] == [site.name for site in skips]
    assert inserted["spec"] == ["attention_gate", {"variant": variant}]
    randomise(net)
    gated = net(x)
    assert not equal(gated, plain)
    assert equal(saved_and_loaded(net)(x), gated)
    assert sorted(attn3d.load_pretrained(net, checkpoint)) == sorted(set(net.state_dict()) - set(checkpoint))
    assert equal(net(x), gated), "loading the network's own weights must not change its output"

    auto = torch.export.Dim.AUTO
    other = torch.cat([x, x[:1] * 2])
    with torch.no_grad():
        exported = torch.export.export(net, (x,), dynamic_shapes=({0: auto},)).module()
        torch.testing.assert_close(exported(other), net(other), rtol=1e-3, atol=1e-4)

    sum(output.square().mean() for output in maps(net.train()(x))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in attn3d.attention_parameters(net))

    assert anatomy(attn3d.remove_attention(net.eval())) == before
    net.load_state_dict(checkpoint)
    assert equal(net(x), plain)


@pytest.mark.parametrize("name", ["UNet", "SegResNet", "PlainConvUNet"])
def test_it_starts_as_the_identity_with_the_option(name: str) -> None:
    net, x = NETWORKS[name]().eval(), image(name)
    plain = net(x)
    attn3d.insert_attention(net, "attention_gate", at="skip", identity=True)
    assert equal(net(x), plain)
    net(x).square().mean().backward()
    assert all(container[0].gate.grad != 0 for _, container in containers(net))


@pytest.mark.parametrize(
    ("name", "signals", "skips"),
    [
        ("SegResNet", ["up_samples.0", "up_samples.1"], ["down_layers.1", "down_layers.0"]),
        ("PlainConvUNet", ["decoder.transpconvs.0", "decoder.transpconvs.1"], ["encoder.stages.1", "encoder.stages.0"]),
        ("DynUNet", ["bottleneck", "upsamples.0"], ["downsamples.0", "input_block"]),
    ],
)
def test_the_signal_is_the_map_that_is_joined_with_the_skip(name: str, signals: list[str], skips: list[str]) -> None:
    net, x = NETWORKS[name]().eval(), image(name)
    attn3d.insert_attention(net, "attention_gate", at="skip")
    outputs: dict[str, Tensor] = {}
    met: list[tuple[Tensor, ...]] = []
    for path in (*signals, *skips):
        net.get_submodule(path).register_forward_hook(lambda _, given, y, path=path: outputs.__setitem__(path, y))
    for _, container in containers(net):
        container[0].register_forward_pre_hook(lambda _, given: met.append(given))
    net(x)
    for (skip, signal), of_skip, of_signal in zip(met, skips, signals, strict=True):
        assert torch.equal(skip, outputs[of_skip])
        assert torch.equal(signal, outputs[of_signal])


def test_sites_with_a_signal_are_named_if_a_site_has_none() -> None:
    net = NETWORKS["BasicUNet"]()
    with pytest.raises(ValueError, match=r"encoder:conv_0, .*; these sites have one: skip:upcat_1, skip:upcat"):
        attn3d.insert_attention(net, "attention_gate", at="encoder")
    assert not attn3d.inserted_attention(net)
    with pytest.raises(ValueError, match="no site of this network has one"):
        attn3d.insert_attention(ResNet("basic", [1] * 4, [4] * 4, 2, 1), "attention_gate", at="encoder")


def test_maps_estimates_and_mechanisms_at_one_skip() -> None:
    net, x = NETWORKS["SegResNet"]().eval(), image("SegResNet")
    attn3d.insert_attention(net, "se", at="skip")
    attn3d.insert_attention(net, "attention_gate", at="skip", identity=True)
    found = attn3d.attention_maps(net, x)
    assert found["skip:down_layers.1#1"]["spatial"].shape == (2, 32, 32)
    assert "channel" in found["skip:down_layers.1"]
    memory = [attn3d.estimate_memory("attention_gate", (1, 16, *[size] * 3), gating_channels=32) for size in (8, 16)]
    assert 6 < memory[1] / memory[0] < 9


def test_a_user_defined_mechanism_with_a_signal() -> None:
    class Mean(nn.Module):
        takes_signal = True

        def __init__(self, spatial_dims: int, channels: int, gating_channels: int) -> None:
            super().__init__()
            self.mix = nn.Linear(gating_channels, channels)

        def forward(self, x: Tensor, signal: Tensor) -> Tensor:
            return x * self.mix(signal.mean((2, 3)))[..., None, None]

    net = attn3d.insert_attention(NETWORKS["DynUNet"](), Mean, at="skip")
    assert [container[0].mix.in_features for _, container in containers(net)] == [8, 8]
    assert net(image("DynUNet")).isfinite().all()


def test_a_partial_of_a_mechanism_with_a_signal() -> None:
    net = attn3d.insert_attention(NETWORKS["DynUNet"](), functools.partial(attn3d.AttentionGate, stride=2), at="skip")
    assert [(gate.gating_channels, gate.stride) for _, [gate] in containers(net)] == [(8, (2, 2)), (8, (2, 2))]
    assert net(image("DynUNet")).isfinite().all()


@pytest.mark.parametrize("name", ["UNet", "SegResNet"])
@pytest.mark.parametrize("identity", [False, True])
def test_a_mechanism_that_declares_no_signal(name: str, identity: bool) -> None:
    class Negative(nn.Module):
        takes_signal = False

        def __init__(self, spatial_dims: int, channels: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return -x

    net = attn3d.insert_attention(NETWORKS[name](), Negative, at="skip", identity=identity)
    assert net(image(name)).isfinite().all()


@pytest.mark.parametrize("identity", [False, True])
def test_gates_in_a_scripted_network(identity: bool) -> None:
    net, x = EveryWay(2).eval(), torch.randn(2, 1, 8, 8)
    attn3d.insert_attention(net, "attention_gate", at=("skip:narrow", "skip:merge"), identity=identity)
    randomise(net)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


@pytest.mark.parametrize("gated", [True, False])
def test_a_function_declares_whether_its_module_takes_a_signal(gated: bool) -> None:
    def make(spatial_dims: int, channels: int, gating_channels: int | None = None) -> nn.Module:
        if gated:
            return attn3d.AttentionGate(spatial_dims, channels, gating_channels=gating_channels)
        return attn3d.ECA(spatial_dims, channels)

    net = NETWORKS["DynUNet"]()
    make.takes_signal = not gated
    with pytest.raises(ValueError, match=f"`spec` must have the attribute `takes_signal` = {gated}, like the module"):
        attn3d.insert_attention(net, make, at="skip")
    assert not attn3d.inserted_attention(net)
    make.takes_signal = gated
    attn3d.insert_attention(net, make, at="skip")
    assert net(image("DynUNet")).isfinite().all()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "configuration",
    [each for each in CONFIGURATIONS if "skip" in each.kinds.split()],
    ids=lambda configuration: configuration.id,
)
def test_every_network_with_skips(configuration: Configuration) -> None:
    net, x = configuration.make().eval(), configuration.image(2)
    before = anatomy(net)
    attn3d.insert_attention(net, "attention_gate", at="skip", input_shape=x.shape)
    runs = []
    for _, container in containers(net):
        container[0].register_forward_hook(lambda *call: runs.append(call))
    sum(output.square().mean() for output in maps(configuration.call(net.train(), x))).backward()
    assert all(parameter.grad is not None for parameter in attn3d.attention_parameters(net))
    assert len(runs) >= len(list(containers(net)))
    assert anatomy(attn3d.remove_attention(net.eval())) == before
