"""Networks that are hard to probe."""

import copy
import functools
import threading

import pytest
import torch
from monai.networks.blocks import ResidualUnit
from monai.networks.nets import ControlNet, DiffusionModelUNet, DynUNet, FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, BaseEncoder
from torch import Tensor, nn
from torch.nn.utils import prune

import attn3d
from attn3d.insertion.attach import containers
from attn3d.networks import register_sites, registry


class DependsOnValues(nn.Module):
    """Chooses a branch by the values of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dark, self.bright = (nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return (self.bright(y) if x.mean().item() > 0.5 else self.dark(y)).mean((2, 3))


def test_a_network_that_depends_on_values_is_run_on_the_cpu() -> None:
    net = DependsOnValues()
    with torch.no_grad():
        net.stem.weight.fill_(1.0)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    attn3d.insert_attention(net, "se", at="path:stem|dark", input_shape=(1, 1, 8, 8))
    assert [path for path, _ in containers(net)] == ["stem.attn3d", "dark.attn3d"]
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    assert attn3d.attention_sites(DependsOnValues())[0].path == "stem"
    with pytest.raises(ValueError, match=r"`input_shape` must be accepted by the network, got .*channel"):
        attn3d.attention_sites(DependsOnValues(), (1, 2, 8, 8))


class StoresOutputs(nn.Module):
    """Stores outputs in its own hooks, a method and a lambda, and reads them in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.kept: dict[str, Tensor] = {}
        self.stem.register_forward_hook(self.keep)
        self.head.register_forward_hook(lambda module, given, output: self.kept.__setitem__("head", output))

    def keep(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept["stem"] = output

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        self.head(torch.cat([y, self.kept["stem"]], 1))
        return self.kept["head"].mean((2, 3))


def test_the_probe_runs_hooks_of_the_network_but_not_of_the_user() -> None:
    net, seen = StoresOutputs(), []
    net.stem.register_forward_hook(lambda module, given, output: seen.append(output))
    assert [site.path for site in attn3d.attention_sites(net)] == ["stem", "head"]
    assert not seen
    assert not net.kept, "the probe must run a copy"
    attn3d.insert_attention(net, "se", at="path:stem")
    assert net(torch.randn(1, 1, 8, 8)).shape == (1, 2)


LEFT: list[Tensor] = []


def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
    LEFT.append(output)


def test_the_probe_does_not_run_a_plain_function_of_the_user() -> None:
    net = DependsOnValues()
    net.stem.register_forward_hook(note)
    assert attn3d.attention_sites(net, (1, 1, 8, 8))[0].path == "stem"
    assert not LEFT
    net(torch.randn(1, 1, 8, 8))
    assert len(LEFT) == 1


class Recorder:
    """A hook that cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), []

    def record(self, module: nn.Module, *call: object) -> None:
        self.seen.append(call)


def test_the_probe_neither_copies_nor_runs_what_the_user_has_registered() -> None:
    net, recorder = DependsOnValues(), Recorder()
    net.stem.register_forward_hook(recorder.record)
    net.stem.register_forward_pre_hook(functools.partial(recorder.record))
    net.dark.register_forward_pre_hook(lambda module, given: recorder.seen.append(given))
    net.dark.register_full_backward_hook(recorder.record)
    assert attn3d.attention_sites(net, (1, 1, 8, 8))[0].path == "stem"
    assert not recorder.seen


def test_reparametrised_weights() -> None:
    """Their hooks are objects, which are not run."""
    net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.Conv2d(4, 2, 1))
    prune.random_unstructured(net[1], "weight", amount=0.5)
    assert [site.path for site in attn3d.attention_sites(net, (1, 1, 8, 8))] == ["0", "1"]


def test_compiled_modules_in_a_network() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 1))
    plain, expected = copy.deepcopy(net), attn3d.attention_sites(net, (1, 1, 8, 8))
    net[0] = torch.compile(net[0], backend="eager")
    assert len(attn3d.attention_sites(net, (1, 1, 8, 8))) > len(expected)  # the compiled module and that inside
    attn3d.insert_attention(net, "se", at="path:0")
    nn.init.ones_(plain[0][0].weight)
    new = attn3d.load_pretrained(net, plain.state_dict())
    assert new == [key for key in net.state_dict() if "attn3d" in key]
    assert torch.equal(net[0]._orig_mod[0].weight, plain[0][0].weight)
    attn3d.load_pretrained(plain, torch.compile(copy.deepcopy(plain)).state_dict())


def test_a_prediction_in_a_dictionary_is_not_attended() -> None:
    class InADictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"out": [self.head(self.stem(x))]}

    assert [site.path for site in attn3d.attention_sites(InADictionary(), (1, 1, 8, 8))] == ["stem"]
    with pytest.raises(ValueError, match="path:head returns the prediction"):
        attn3d.insert_attention(InADictionary(), "se", at="path:head")


def test_attributes_whose_names_begin_like_those_of_inserted_modules() -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn3d_net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.attn3d_net(x).mean((2, 3))

    net = attn3d.insert_attention(Wraps(), "se", at="path:attn3d_net.0")
    assert [path for path, _ in containers(net)] == ["attn3d_net.0.attn3d"]
    assert "path:attn3d_net.0" in attn3d.attention_maps(net, torch.randn(1, 1, 8, 8))


def test_blocks_of_a_library_in_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    imported, load = [], registry.importlib.import_module
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: imported.append(name) or load(name))
    attn3d.attention_sites(nn.Sequential(nn.Conv2d(1, 4, 1)), (1, 1, 8, 8))
    assert not imported
    sites = attn3d.attention_sites(nn.Sequential(ResidualUnit(2, 1, 4), nn.Conv2d(4, 2, 1)), (1, 1, 8, 8))
    assert "attn3d.networks.monai" in imported
    assert {"block", "residual"} <= {site.kind for site in sites}


def test_a_network_that_holds_results_of_a_forward_pass() -> None:
    net = DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4] * 4, deep_supervision=True, deep_supr_num=1)
    net(torch.randn(1, 1, 16, 16)).sum().backward()
    held = net.heads[0]
    assert not held.is_leaf
    attn3d.insert_attention(net, "se", at="skip")
    assert net.heads[0] is held
    assert attn3d.attention_maps(net, torch.randn(1, 1, 16, 16))
    net(torch.randn(1, 1, 16, 16)).sum().backward()
    assert attn3d.estimate_memory(net, (1, 1, 16, 16)) > 0


def test_the_error_for_several_inputs_names_register_sites() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 1)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.last(self.conv(x) + time)

    for shape in (None, (1, 1, 8, 8, 8)):
        with pytest.raises(ValueError, match=r"'time'; register how to call it .*register_sites\(\.\., run=\)"):
            attn3d.insert_attention(Two(), "se", at="path:conv", input_shape=shape)
    register_sites(Two, {"encoder": ["conv"]}, run=lambda net, x: net(x, x.new_zeros(1)))
    attn3d.insert_attention(Two(), "se", at="encoder")


def test_controlnet() -> None:
    net = ControlNet(
        spatial_dims=2,
        in_channels=1,
        num_res_blocks=(1, 1),
        channels=(4, 8),
        attention_levels=(False, False),
        norm_num_groups=2,
        conditioning_embedding_in_channels=1,
        conditioning_embedding_num_channels=(4, 4),
    )
    assert [site.kind for site in attn3d.attention_sites(net) if site.kind in ("encoder", "bottleneck")] == [
        *["encoder"] * 2,
        "bottleneck",
    ]
    attn3d.insert_attention(net, "se", at=("encoder", "bottleneck"))
    assert len(net(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.randn(1, 1, 16, 16))[0]) == 4


def test_a_diffusion_network_of_classes() -> None:
    levels = {"channels": (4, 8), "attention_levels": (False, False), "norm_num_groups": 2, "num_res_blocks": 1}
    net = DiffusionModelUNet(2, 1, 1, num_class_embeds=3, **levels)
    attn3d.insert_attention(net, "se", at="skip")
    x, time = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert net(x, time, class_labels=torch.tensor([0, 2])).shape == x.shape


class OwnEncoder(nn.Conv2d, BaseEncoder):
    """Gives two maps, at half and a quarter of the size."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(1, 4, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        half = super().forward(x)
        return [half, nn.functional.avg_pool2d(half, 2)]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, object]]:
        return [{"spatial_dims": 2, "in_channels": 1, "pretrained": False}]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        return [(4, 4)]

    @classmethod
    def num_outputs(cls) -> list[int]:
        return [2]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        return ["own"]


@pytest.mark.parametrize(
    ("backbone", "channels", "encoder", "skips"),
    [
        ("resnet10", 5, [64, 64, 128, 256], [64, 64, 128, 256]),
        ("efficientnet-b0", 5, [16, 24, 40, 112], [16, 24, 40, 112]),
        ("own", 2, [], [4]),
    ],
)
def test_flexible_unet(backbone: str, channels: int, encoder: list[int], skips: list[int]) -> None:
    """The library does not know the stages of an encoder that the user has registered with MONAI."""
    if backbone not in FLEXUNET_BACKBONE.register_dict:
        FLEXUNET_BACKBONE.register_class(OwnEncoder)
    with torch.device("meta"):
        net = FlexibleUNet(1, 2, backbone, decoder_channels=(8,) * channels)
    sites = attn3d.attention_sites(net, (1, 1, 64, 64))
    for kind, found in (("encoder", encoder), ("skip", skips)):
        assert [site.channels for site in sites if site.kind == kind] == found
    assert len([site for site in sites if site.kind == "bottleneck"]) == bool(encoder)
    assert len([site for site in sites if site.kind == "decoder"]) == channels
