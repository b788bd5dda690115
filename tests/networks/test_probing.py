"""Networks that are hard to probe."""

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.blocks import ResidualUnit
from monai.networks.nets import ControlNet, DiffusionModelUNet, DynUNet, FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, BaseEncoder
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import attn3d
from attn3d.insertion.attach import containers
from attn3d.networks import Place, concatenated, first_argument, items, register_sites, registry, second_argument

pytestmark = pytest.mark.usefixtures("registries")


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
    """A function that a copy of the network shares."""
    LEFT.append(output)


def test_the_probe_does_not_run_a_plain_function_of_the_user() -> None:
    LEFT.clear()
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
    assert attn3d.attention_sites(net, (1, 1, 8, 8)) == expected
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
        with pytest.raises(ValueError, match=r"'time'; .* register how to call it: .*register_sites\(\.\., run=\)"):
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
def test_flexible_unet(
    backbone: str, channels: int, encoder: list[int], skips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library does not know the stages of an encoder that the user has registered with MONAI."""
    monkeypatch.setattr(FLEXUNET_BACKBONE, "register_dict", {**FLEXUNET_BACKBONE.register_dict})
    FLEXUNET_BACKBONE.register_class(OwnEncoder)
    with torch.device("meta"):
        net = FlexibleUNet(1, 2, backbone, decoder_channels=(8,) * channels)
    sites = attn3d.attention_sites(net, (1, 1, 64, 64))
    for kind, found in (("encoder", encoder), ("skip", skips)):
        assert [site.channels for site in sites if site.kind == kind] == found
    assert len([site for site in sites if site.kind == "bottleneck"]) == bool(encoder)
    assert len([site for site in sites if site.kind == "decoder"]) == channels


class ChannelsLast(nn.Module):
    """A block of tokens, whose modules return maps with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.linear = parametrizations.weight_norm(nn.Linear(8, 12))
        self.act, self.drop = nn.GELU(), nn.Dropout()
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.stem(x).movedim(1, -1))
        return self.head(self.drop(self.act(self.linear(tokens))).movedim(-1, 1))


def test_maps_with_channels_last_are_no_sites() -> None:
    assert [site.path for site in attn3d.attention_sites(ChannelsLast(), (1, 1, 6, 5))] == ["stem"]


def test_both_parts_of_a_concatenation_are_attended() -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 5, 1)
            self.up = nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(torch.cat(tensors=[self.low(x), x, self.high(x)], dim=1))

    register_sites(Joins, {"skip": [concatenated("up", first=True), concatenated("up")]})
    net, x = Joins(), torch.randn(2, 1, 6, 5)
    low, high = net.low(x), net.high(x)
    expected = net.up(torch.cat([attn3d.SimAM(2, 3)(low), x, attn3d.SimAM(2, 5)(high)], 1))
    attn3d.insert_attention(net, "simam", at="skip")
    torch.testing.assert_close(net(x), expected)
    assert list(attn3d.remove_attention(net).state_dict()) == list(Joins().state_dict())


class Runs(nn.Sequential):
    """A sequence that does more than run its children."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(torch.cat([x, skip], 1))


@pytest.mark.parametrize("place", [first_argument("up"), second_argument("up")])
def test_a_sequence_with_its_own_forward_gets_no_child(place: Place) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 3, 1), Runs(nn.Conv2d(4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.down(x), x)

    register_sites(Calls, {"skip": [place]})
    with pytest.raises(ValueError, match="is a container with its own forward"):
        attn3d.insert_attention(Calls(), "simam", at="skip")


def test_a_tuple_of_skips_stays_a_tuple() -> None:
    class Encoder(nn.Conv2d):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (super().forward(x),)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Encoder(1, 3, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat(self.encoder(x) + (x,), 1))

    register_sites(Net, {"skip": items("encoder", 1)})
    assert attn3d.insert_attention(Net(), "se", at="skip")(torch.randn(2, 1, 6, 5)).shape == (2, 2, 6, 5)


def test_a_compiled_module_and_the_module_inside_are_one_site() -> None:
    net, x = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1)), torch.randn(2, 1, 6, 5)
    expected = net[1](attn3d.SimAM(2, 4)(net[0](x)))
    net[0] = torch.compile(net[0], backend="eager")
    attn3d.insert_attention(net, "simam", at=["path:0", "path:0._orig_mod"], input_shape=(1, 1, 6, 5))
    torch.testing.assert_close(net(x), expected)


def test_a_network_whose_forward_is_a_closure_keeps_its_state() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    plain = net.forward
    net.forward = lambda x: plain(x).float()
    with pytest.raises(ValueError, match="its forward is a function that calls the modules of its closure"):
        attn3d.attention_sites(net, (1, 1, 6, 5))
    assert all(module.training for module in net.modules())
    assert net[1].num_batches_tracked == 0


def test_hooks_of_the_network_that_are_partial_or_hold_a_name() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[str, Tensor] = {}
            self.one, self.two, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.one.register_forward_hook(functools.partial(self.keep, "one"))
            self.two.register_forward_hook(self.keeper("two"))

        def keep(self, name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.found[name] = output

        def keeper(self, name: str) -> Callable[..., None]:
            return lambda *call: self.keep(name, *call)

        def forward(self, x: Tensor) -> Tensor:
            self.two(self.one(x))
            return self.head(self.found["one"] + self.found["two"])

    net = Remembers()
    assert [site.path for site in attn3d.attention_sites(net, (1, 1, 6, 5))] == ["one", "two"]
    assert not net.found


def test_hooks_that_hold_an_object_or_a_dictionary_of_the_network() -> None:
    class Stored:  # as in the U-Net of fastai
        def __init__(self, module: nn.Module) -> None:
            self.output: Tensor | None = None
            module.register_forward_hook(self.store)

        def store(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.output = output

    class Stores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.stored, self.found = Stored(self.one), {}
            found = self.found
            self.two.register_forward_hook(lambda module, given, output: found.update(two=output))

        def forward(self, x: Tensor) -> Tensor:
            self.two(self.one(x))
            return self.head(self.stored.output + self.found["two"])

    net = Stores()
    assert [site.path for site in attn3d.attention_sites(net, (1, 1, 6, 5))] == ["one", "two"]
    assert net.stored.output is None
    assert not net.found


def test_a_module_of_the_user_that_is_no_part_of_the_network_is_neither_copied_nor_run() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def keep(self, *call: object) -> None:
            raise AssertionError("a probe runs a hook of the user")

        forward = keep

    recorder, net = Recorder(), nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    net[0].register_forward_hook(recorder.keep)
    net[0].register_forward_hook(lambda *call: recorder.keep(*call))
    net[1].register_forward_hook(functools.partial(recorder.keep, "name"))
    net[1].register_forward_hook(Recorder())
    assert len(attn3d.attention_sites(net, (1, 1, 6, 5))) == 1


def test_a_module_of_the_network_that_is_a_hook() -> None:
    class Keep(nn.Module):
        def forward(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.kept = output

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.keep, self.head = nn.Conv2d(1, 4, 1), Keep(), nn.Conv2d(4, 2, 1)
            self.stem.register_forward_hook(self.keep)

        def forward(self, x: Tensor) -> Tensor:
            self.stem(x)
            return self.head(self.keep.kept)

    net = Net()
    assert [site.path for site in attn3d.attention_sites(net, (1, 1, 6, 5))] == ["stem"]
    assert not hasattr(net.keep, "kept"), "the probe must run a copy"
    assert not net.keep._forward_hooks


def test_the_network_stays_in_its_mode_during_a_probe() -> None:
    modes = []

    class Watched(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, net.training))
            return super().forward(x)

    net = nn.Sequential(Watched(1, 4, 1), nn.ReLU())
    attn3d.attention_sites(net, (1, 1, 6, 5))
    assert set(modes) == {(False, True)}


def test_a_network_that_cannot_be_copied() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    net.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"`net` must support copy\.deepcopy, got cannot pickle"):
        attn3d.attention_sites(net)


def _second(given: Any) -> Tensor:
    _, second = given
    return second


@pytest.mark.parametrize(
    "image", [lambda given: given["image"], lambda given: given.image, lambda given: given[1], _second]
)
def test_the_error_for_another_input_than_an_image_names_register_sites(image: Callable[[object], Tensor]) -> None:
    class Entry(nn.Conv2d):
        def forward(self, given: object) -> Tensor:
            return super().forward(image(given))

    with pytest.raises(ValueError, match=r"its input is not one image, register how to call it: .*register_sites"):
        attn3d.attention_sites(Entry(1, 4, 1), (1, 1, 6, 5))


def test_the_error_for_a_keyword_that_is_required_names_register_sites() -> None:
    class Keyword(nn.Conv2d):
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return super().forward(x) * scale

    with pytest.raises(ValueError, match=r"register_sites\(\.\., run=\)"):
        attn3d.attention_sites(Keyword(1, 4, 1), (1, 1, 6, 5))
