"""Inserting attention by name, listing it, loading checkpoints, and removing it."""

import copy
import functools
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import attn3d
from attn3d.insertion import (
    attention_parameters,
    attention_sites,
    insert_attention,
    inserted_attention,
    load_pretrained,
    remove_attention,
)
from attn3d.insertion.attach import container_at, containers, inserted_by_network
from attn3d.insertion.checkpoints import wrapper_prefix
from attn3d.insertion.containers import IdentityAtStart
from attn3d.networks import first_argument, items, register_block, register_sites, second_argument, summed
from tests.configurations import FORMS, OF_ONE_MAP, of_form, taking
from tests.marks import some
from tests.networks.comparing import saved_and_loaded

pytestmark = pytest.mark.usefixtures("registries")

_OF_OTHER_TYPES = [(3, None), ([], None), ("encoder", "0"), ("encoder", 1.0), ("encoder", [0, True])]


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch").eval()


CANCELLED = {"gc": "score.bias"}  # softmax ignores a value that is added to all scores


def insertionless(net: nn.Module) -> nn.Module:
    return remove_attention(copy.deepcopy(net))


class Backbone(nn.Module):
    """A backbone as in torchvision: stages of residual blocks and a head."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x + self.conv2(self.relu(self.conv1(x))))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for stage in range(1, 5):
            down = nn.Conv2d(4 * stage if stage > 1 else 4, 4 * stage + 4, 2, 2)
            blocks = [self.Block(4 * stage + 4) for _ in range(2)]
            self.add_module(f"layer{stage}", nn.Sequential(down, *blocks))
        self.unused = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for stage in range(1, 5):
            x = self.relu(self.get_submodule(f"layer{stage}")(x))
        return self.fc(x.mean((2, 3)))


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone().eval()


class Joins(nn.Module):
    """A network with a module whose second argument is optional."""

    class Join(nn.Module):
        def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
            return x if skip is None else x + skip

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.join, self.head = nn.Conv2d(1, 4, 3, padding=1), self.Join(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, call: str = "second") -> Tensor:
        y = self.stem(x)
        if call == "by name":
            return self.head(self.join(y, skip=y))
        return self.head(self.join(y, y if call == "second" else None))


SKIP = second_argument("join")


class Two(nn.Module):
    """Two networks with attention: cbam in one, se and eca in the other."""

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self.student, self.teacher = unet(), unet()
        if attention:
            insert_attention(self.student, "cbam", at="encoder", stages=0)
            insert_attention(self.teacher, "se", at="encoder")
            insert_attention(self.teacher, "eca", at="skip")

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) + self.teacher(x)


def inserted_at(net: nn.Module) -> list[str]:
    return [path for path, _ in containers(net)]


class TestSites:
    def test_table(self) -> None:
        table = str(attention_sites(unet(), (1, 1, 16, 8)))
        lines = table.splitlines()
        assert lines[0].split() == ["kind", "stage", "path", "channels", "shape"]
        assert lines[1].split() == ["encoder", "0", "model.0", "4", "8", "x", "4"]
        assert len(lines) == 1 + len(attention_sites(unet()))

    def test_the_network_is_not_changed(self) -> None:
        net, seen = unet(), []
        net.model.register_forward_hook(lambda *call: seen.append(call))
        state = {key: value.clone() for key, value in net.state_dict().items()}
        attention_sites(net.train(), (4, 1, 16, 16))
        assert not seen, "the probe must not call hooks of the user"
        assert net.training
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())

    def test_sites_do_not_change_after_insertion(self) -> None:
        net = unet()
        before = attention_sites(net)
        insert_attention(net, "sk", at=("encoder", "skip", "block", "conv"))
        assert attention_sites(net) == before

    def test_a_large_network_on_a_large_image(self) -> None:
        net = UNet(3, 4, 3, (32, 64, 128, 256, 320), (2, 2, 2, 2)).to("meta")
        assert attention_sites(net, (2, 4, 128, 128, 128))[0].voxels == 64**3

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 2, 16, 16), "must be accepted by the network"),
            ((1, 1, 14, 14), "must be accepted by the network"),
            ((1, 1, 16), "must have 4 sizes"),
            ((1, 1, 16, 16, 16), "must have 4 sizes"),
        ],
    )
    def test_a_shape_that_the_network_does_not_accept(self, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=f"`input_shape` .*{message}"):
            attention_sites(unet(), shape)

    def test_a_guess_needs_no_order_of_the_convolutions_and_leaves_the_generator(self) -> None:
        class Drawing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.stem = nn.Conv2d(4, 2, 1), nn.Conv2d(1, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.stem(x) * torch.rand(1).item())  # `item` moves the probe from meta to the CPU

        net, state = Drawing(), torch.get_rng_state()
        assert [site.path for site in attention_sites(net)] == ["stem"]
        assert torch.equal(torch.get_rng_state(), state)

    def test_no_shape_can_be_guessed(self) -> None:
        with pytest.raises(ValueError, match=r"`input_shape` \(B, C, \*S\) must be given"):
            attention_sites(nn.Sequential(nn.Linear(7, 7)))


class TestSelection:
    @pytest.mark.parametrize(
        ("at", "stages", "paths"),
        [
            ("encoder", None, ["model.0", "model.1.submodule.0"]),
            ("encoder", 0, ["model.0"]),
            ("encoder", -1, ["model.1.submodule.0"]),
            ("encoder", (0, -1), ["model.0", "model.1.submodule.0"]),
            (("bottleneck", "decoder"), None, ["model.1.submodule.1.submodule", "model.1.submodule.2"]),
            ("encoder:model.0", None, ["model.0"]),
            ("encoder:model.*.*.0", None, ["model.1.submodule.0"]),
            ("residual", -1, ["model.1.submodule.2.1.conv"]),
            (["encoder", "block"], 0, ["model.0"]),
            ("path:model.1.submodule.0.conv", None, ["model.1.submodule.0.conv"]),
        ],
    )
    def test_kinds_and_stages(self, at: str, stages: int | None, paths: list[str]) -> None:
        net = insert_attention(unet(), "se", at=at, stages=stages)
        assert sorted(inserted_at(net)) == sorted(f"{path}.attn3d" for path in paths)

    @pytest.mark.parametrize(
        ("pattern", "stages", "paths"),
        [
            ("layer2.1", None, ["layer2.1"]),
            ("layer[2-4].*", None, [f"layer{stage}.{block}" for stage in (2, 3, 4) for block in (0, 1, 2)]),
            ("layer?", -1, ["layer4"]),
            ("layer?", (0, 2), ["layer1", "layer3"]),
            (r"layer[23]\.(1|2)", None, ["layer2.1", "layer2.2", "layer3.1", "layer3.2"]),
            (r".*\.conv2", (0, -1), ["layer1.1.conv2", "layer4.2.conv2"]),
        ],
    )
    def test_any_module_by_path(self, pattern: str, stages: int | None, paths: list[str]) -> None:
        net = insert_attention(backbone(), "eca", at=f"path:{pattern}", stages=stages)
        assert inserted_at(net) == [f"{path}.attn3d" for path in paths]
        assert net(torch.randn(2, 3, 32, 32)).shape == (2, 5)

    def test_a_network_without_sites_has_its_modules_and_convs(self) -> None:
        sites = attention_sites(backbone())
        assert {site.kind for site in sites} == {"path", "conv"}
        assert "layer3.1.relu" in [site.path for site in sites]
        assert "unused" not in [site.path for site in sites]
        assert [site.path for site in sites if site.kind == "conv"][:2] == ["layer1.1.conv1", "layer1.1.conv2"]

    def test_a_module_with_two_paths_is_one_site(self) -> None:
        net = backbone()
        net.add_module("alias", net.layer1)
        insert_attention(net, "eca", at=["path:alias", "path:layer1"])
        assert inserted_at(net) == ["layer1.attn3d"]

    @pytest.mark.parametrize(
        ("net", "at", "stages", "message"),
        [
            (unet, "encodr", None, "did you mean 'encoder'"),
            (unet, "model.0", None, "got 'model.0'; did you mean 'path:model.0'"),
            (backbone, "encoder", None, "Backbone has no registered sites.*at='path:.*register_sites"),
            (unet, "encoder", 2, "`stages` of 'encoder' must be from -2 to 1, got 2"),
            (unet, "path:model.3", None, r"`at` must match a module, .*; did you mean 'model"),
            (unet, "path:model.(", None, "must match a module"),
            (unet, "path:model.2", None, "path:model.2 returns the prediction; name a module before it"),
            (backbone, "path:unused", None, "path:unused never runs in a forward pass in evaluation mode"),
            (backbone, "path:fc", None, r"path:fc returns \(1, 5\), not a map"),
            (backbone, "path:relu", None, r"path:relu is called with different channels, \[4, 8, 12, 16, 20\]"),
            (unet, "skip", [], r"`stages` of 'skip' must contain at least one of \[0, 1\], got \[\]"),
            (unet, "encoder:model.1.submodule.0", 0, r"`stages` of .* must contain at least one of \[1\], got \[0\]"),
            (lambda: nn.Conv2d(1, 4, 3), "path", 0, "`at` 'path' must select a module inside the network, which has"),
        ],
    )
    def test_refusals(self, net: object, at: str, stages: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            insert_attention(net(), "se", at=at, stages=stages)

    def test_a_refusal_names_the_networks_inside_a_wrapper(self) -> None:
        for net, paths in ((nn.Sequential(unet(), nn.Softmax(1)), "`0`"), (Two(), "`student` or `teacher`")):
            with pytest.raises(ValueError, match=f"has no registered sites: insert into its {paths}, select"):
                insert_attention(net, "se", at="encoder")

    def test_channels_last_tuples_and_containers_with_a_forward_are_refused(self) -> None:
        class Steps(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)

        class Dense(nn.ModuleDict):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([x, *(layer(x) for layer in self.values())], 1)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = Steps(nn.Conv2d(1, 4, 3, padding=1))
                self.dense = Dense({"one": nn.Conv2d(4, 2, 1)})
                self.last = nn.Sequential(nn.LayerNorm(6), nn.GELU())
                self.both = nn.LSTM(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.last(self.dense(self.stem(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                return self.both(x.mean((2, 3)).view(len(x), 1, -1)[..., :4])[0]

        for path, message in (
            ("last", "returns channels last"),
            ("both", "returns a tuple, not a map"),
            ("dense", "container with its own forward"),
            ("stem", "container with its own forward; name a module inside it"),
        ):
            with pytest.raises(ValueError, match=f"path:{path} .*{message}"):
                insert_attention(Net(), "se", at=f"path:{path}", input_shape=(1, 1, 16, 16))
        insert_attention(Net(), "se", at="path:stem.0")

    def test_a_module_that_returns_nothing(self) -> None:
        class Note(nn.Module):
            def forward(self, x: Tensor) -> None:
                return None

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.note, self.head = nn.Conv2d(1, 4, 1), Note(), nn.Conv2d(4, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                y = self.stem(x)
                self.note(y)
                return self.head(y)

        with pytest.raises(ValueError, match="path:note returns a NoneType, not a map"):
            insert_attention(Net(), "se", at="path:note", input_shape=(1, 1, 8, 8))

    def test_a_skip_that_is_omitted_or_a_keyword_argument(self) -> None:
        """After insertion, a call may still omit it."""
        net, x = Joins(), torch.randn(2, 1, 8, 8)
        register_sites(Joins, {"decoder": ["join"], "bottleneck": [first_argument("join")], "skip": [SKIP]})
        alone = net(x, "none")
        insert_attention(net, "se", at="skip")
        [(path, [attention])] = containers(net)
        assert path == "join.attn3d_skip"
        assert torch.equal(net(x, "none"), alone)
        torch.testing.assert_close(net(x, "second"), net.head(net.stem(x) + attention(net.stem(x))))
        for call in ("none", "by name"):
            register_sites(Joins, {"skip": [SKIP]}, run=lambda net, x, call=call: net(x, call))
            with pytest.raises(ValueError, match="skip:join is called without this argument, or with a keyword arg"):
                insert_attention(Joins(), "se", at="skip")

    @pytest.mark.parametrize(("at", "attended"), [("decoder", "output"), ("bottleneck", "first")])
    def test_sites_beside_an_optional_skip(self, at: str, attended: str) -> None:
        net, x = Joins(), torch.randn(2, 1, 8, 8)
        register_sites(Joins, {"decoder": ["join"], "bottleneck": [first_argument("join")], "skip": [SKIP]})
        insert_attention(net, "se", at=at)
        [(_, [attention])] = containers(net)
        y = net.stem(x)
        for call, skip in (("second", y), ("none", torch.zeros_like(y))):
            expected = attention(y + skip) if attended == "output" else attention(y) + skip
            torch.testing.assert_close(net(x, call), net.head(expected))

    def test_after_an_instance_norm_the_warning_names_the_activation(self) -> None:
        net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)), nn.ReLU())
        net = nn.Sequential(nn.Sequential(net, nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 2, 1))
        with pytest.warns(UserWarning, match=r"at path:0.0.0.1 is the bias of .*after the activation, at 'path:0.0'$"):
            insert_attention(net, "se", at="path:0.0.0.1", input_shape=(1, 1, 8, 8))

    def test_sites_that_are_left_out_are_named_in_a_warning(self) -> None:
        with pytest.warns(UserWarning, match="no attention at path:unused, which never runs"):
            net = insert_attention(backbone(), "se", at="path:stem|unused")
        assert inserted_at(net) == ["stem.attn3d"]

    @pytest.mark.parametrize(("at", "stages"), _OF_OTHER_TYPES)
    def test_types(self, at: object, stages: object) -> None:
        named = "`at` must be .*, got" if stages is None else "`stages` must be integers, got"
        with pytest.raises(TypeError, match=named):
            insert_attention(unet(), "se", at=at, stages=stages)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_shape": 64}, r"`input_shape` must be the sizes \(B, C, \*S\) of an image, got 64"),
            ({"input_shape": (1, 1, 16, 16), "max_voxels": "512"}, "`max_voxels` must be an integer, got '512'"),
        ],
    )
    def test_types_of_sizes(self, options: dict, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            insert_attention(unet(), "se", at="encoder", **options)

    @pytest.mark.parametrize(
        "stages", [lambda: iter([0, 1]), lambda: np.array([0, 1]), lambda: (np.int64(0), torch.tensor(1))]
    )
    def test_stages_of_several_kinds_and_types(self, stages: Callable[[], object]) -> None:
        net = insert_attention(unet(), "se", at=("encoder", "skip"), stages=stages())
        assert inserted_at(net) == inserted_at(insert_attention(unet(), "se", at=("encoder", "skip"), stages=(0, 1)))

    def test_wrapped_networks(self) -> None:
        with pytest.raises(ValueError, match="in DataParallel: insert attention into the network before"):
            insert_attention(nn.DataParallel(unet()), "se", at="encoder")
        with pytest.raises(ValueError, match="insert attention first"):
            insert_attention(torch.jit.script(unet()), "se", at="encoder")

    @pytest.mark.parametrize("sharded", [FSDPModule, FullyShardedDataParallel])
    def test_networks_with_a_sharded_part(self, sharded: type) -> None:
        net = unet()
        net.model[0].__class__ = type("Sharded", (sharded, type(net.model[0])), {})  # as `fully_shard` does
        with pytest.raises(ValueError, match=f"in {sharded.__name__}: insert attention into the network before"):
            insert_attention(net, "se", at="bottleneck")

    def test_a_site_that_is_left_out_is_named_whatever_is_selected_after_it(self) -> None:
        with pytest.warns(UserWarning, match="no attention at path:unused, which never runs"):
            insert_attention(backbone(), "se", at=("path:stem|unused", "path:layer1"))

    @pytest.mark.parametrize("own", [nn.ReLU(), 3])
    def test_a_name_that_the_network_uses_itself(self, own: object) -> None:
        net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)), torch.randn(1, 1, 8, 8)
        net[0].attn3d = own
        plain = net(x)
        assert [site.path for site in attention_sites(net, x.shape)] == ["1"]
        with pytest.raises(ValueError, match=r"path:0 has its own attribute `attn3d`, .* rename it"):
            insert_attention(net, "se", at=("path:1", "path:0"), input_shape=x.shape)
        with pytest.warns(UserWarning, match="no attention at path:0, which has its own attribute `attn3d`"):
            insert_attention(net, "se", at="path:[01]", input_shape=x.shape)
        assert torch.equal(remove_attention(net)(x), plain)
        assert net[0].attn3d is own


class TestMaxVoxels:
    def test_large_maps_are_left_out(self) -> None:
        with pytest.warns(UserWarning, match="encoder:model.0, which has 64 voxels, more than `max_voxels`"):
            net = insert_attention(unet(), "mhsa", at="encoder", max_voxels=63, input_shape=(1, 1, 16, 16))
        assert inserted_at(net) == ["model.1.submodule.0.attn3d"]
        net = insert_attention(unet(), "mhsa", at="encoder", max_voxels=64, input_shape=(1, 1, 16, 16))
        assert len(inserted_at(net)) == 2

    def test_at_least_one_site_must_be_left(self) -> None:
        with pytest.raises(ValueError, match="`max_voxels` must leave at least one site, got"):
            insert_attention(unet(), "mhsa", at="encoder", max_voxels=1, input_shape=(1, 1, 16, 16))

    def test_a_guessed_shape_is_not_used(self) -> None:
        with pytest.raises(ValueError, match=r"`input_shape` .* must be given"):
            insert_attention(unet(), "mhsa", at="encoder", max_voxels=100)


class TestMechanisms:
    def test_options(self) -> None:
        net = insert_attention(unet(), ("cbam", {"reduction": 2, "kernel_size": 3}), at="bottleneck", reduction=1)
        [(_, [cbam])] = containers(net)
        assert cbam.channels == 8
        assert next(cbam.parameters()).shape == (8, 8)

    def test_a_class_or_function(self) -> None:
        class Scale(nn.Module):
            def __init__(self, spatial_dims: int, channels: int, start: float = 1.0) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.full((channels, *[1] * spatial_dims), start))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.scale

        net, x = unet(), torch.randn(1, 1, 16, 16)
        plain = net(x)
        insert_attention(net, Scale, at="encoder", start=2.0)
        assert not torch.equal(net(x), plain)
        assert inserted_attention(net)[0]["spec"] == [Scale, {"start": 2.0}]

    def test_a_module_is_no_spec(self) -> None:
        with pytest.raises(TypeError, match=r"`spec` must be a name, a class or a function, .* got a CBAM"):
            insert_attention(unet(), attn3d.CBAM(2, 4), at="encoder")

    @pytest.mark.parametrize("name", ["channels", "spatial_dims"])
    def test_what_follows_from_the_site_is_no_option(self, name: str) -> None:
        with pytest.raises(TypeError, match=f"`{name}` follows from the site, got 2; leave it out"):
            insert_attention(unet(), "se", at="encoder", **{name: 2})

    def test_two_at_one_site_in_order(self) -> None:
        net = insert_attention(unet(), "se", at="encoder", stages=0)
        insert_attention(net, "eca", at="encoder", stages=0)
        [(_, inserted)] = containers(net)
        assert [type(mechanism) for mechanism in inserted] == [attn3d.SqueezeExcitation, attn3d.ECA]

    @pytest.mark.parametrize("first", ["encoder", "skip"])
    @pytest.mark.parametrize("net", [unet, lambda: SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)).eval()])
    def test_attention_at_a_skip_comes_after_that_of_its_stage(self, net: object, first: str) -> None:
        """In either order of insertion, and the next stage gets the output of the stage's attention."""
        one, two, x = net(), net(), torch.randn(1, 1, 16, 16)
        for host, kinds in ((one, ("encoder", "skip")), (two, (first, "skip" if first == "encoder" else "encoder"))):
            for kind in kinds:
                torch.manual_seed(1)
                insert_attention(host, "se", at=kind)
        load_pretrained(two, one.state_dict())
        assert torch.equal(one(x), two(x))

    def test_selective_kernels_beside_a_convolution(self) -> None:
        net, x = unet(), torch.randn(2, 1, 16, 16)
        weight = net.model[1].submodule[2][1].conv[0].conv.weight
        with pytest.raises(ValueError, match="supports only 'sk', got 'se'; 'block' and 'residual' support any"):
            insert_attention(net, "se", at="conv")
        insert_attention(net, "sk", at="conv", branches=3)
        assert net.model[1].submodule[2][1].conv[0].conv.weight is weight
        net(x).sum().backward()
        assert weight.grad is not None
        assert all(parameter is not weight for parameter in attention_parameters(net))

    def test_the_kernel_of_a_convolution_is_its_first_branch(self) -> None:
        """The layer equals SelectiveKernel with the network's weight in its first branch."""
        conv, x = nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.randn(2, 4, 9, 7)
        kernel = attn3d.SelectiveKernel(2, 4, groups=1)
        host = insert_attention(nn.Sequential(conv, nn.AvgPool2d(2)), "sk", at="conv", groups=1)
        [(_, [inserted])] = containers(host)
        state = {key: value for key, value in kernel.state_dict().items() if key != "branches.0.0.weight"}
        inserted.attention.load_state_dict(state)
        with torch.no_grad():
            conv.weight.copy_(kernel.branches[0][0].weight)
        torch.testing.assert_close(conv(x), kernel(x))

    def test_the_kernel_of_a_convolution_is_reached_by_a_gate_from_zero(self) -> None:
        conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 9, 7)
        plain = conv(x)
        [(_, [inserted])] = containers(insert_attention(nn.Sequential(conv, nn.ReLU()), "sk", at="conv", identity=True))
        nn.init.constant_(inserted.gate, 0.25)
        torch.testing.assert_close(conv(x), 0.75 * plain + 0.25 * inserted.attention(x, plain))

    def test_device_dtype_and_mode_are_those_of_the_network(self) -> None:
        net = unet().double().train()
        insert_attention(net, "cbam", at="encoder", variant="paper")
        assert {parameter.dtype for parameter in attention_parameters(net)} == {torch.float64}
        assert all(module.training for module in net.modules())
        net = insert_attention(unet().eval(), "cbam", at="encoder", variant="paper")
        assert not any(module.training for module in net.modules())
        net = insert_attention(unet().to("meta"), "se", at="encoder")
        assert {parameter.device.type for parameter in attention_parameters(net)} == {"meta"}

    def test_an_invalid_option_is_refused_before_anything_is_inserted(self) -> None:
        net = unet()
        keys = list(net.state_dict())
        with pytest.raises(ValueError, match=r"`num_heads`.*8.*\(at encoder:model.0 with 4 channels\)"):
            insert_attention(net, "mhsa", at=["bottleneck", "encoder"], num_heads=8)
        with pytest.raises(TypeError, match="`reductoin`"):
            insert_attention(net, "se", at="encoder", reductoin=3)
        assert list(net.state_dict()) == keys


@pytest.mark.scorecard("insertion")
class TestIdentity:
    @pytest.mark.parametrize(
        "form", some([form for form in FORMS if form[0] in OF_ONE_MAP], lambda form: form[1] == "paper"), ids="-".join
    )
    def test_outputs_are_equal_until_training_moves_every_parameter(self, form: tuple[str, str]) -> None:
        torch.manual_seed(0)
        (name, _), option = form, of_form(*form)
        net, x = UNet(2, 1, 2, (8, 8), (2,), num_res_units=1, norm="batch").eval(), torch.randn(2, 1, 8, 8)
        plain = net(x)
        at = ("skip", "conv") if name == "sk" else ("skip", "residual")
        # A narrow hidden layer may be zero everywhere after ReLU.
        width = {"reduction": 1} if name in taking("reduction") else {}
        insert_attention(net, name, at=at, identity=True, **option, **width)
        assert torch.equal(net(x), plain)
        assert torch.equal(net.train()(x), insertionless(net).train()(x))

        [(_, inserted), *_] = containers(net)
        own = attn3d.create_attention(name, spatial_dims=2, channels=8, **option).identity_at_start
        gates = [key for key, _ in inserted.named_parameters() if key == "0.gate"]
        assert len(gates) == (0 if own else 1), "a second zero gate would never train"

        started = {key: value.clone() for key, value in net.named_parameters() if ".attn3d" in key}
        optimiser, target = torch.optim.Adam(attention_parameters(net)), torch.randn_like(plain)
        for _ in range(20):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(x), target).backward()
            optimiser.step()
        still = {key for key, value in net.named_parameters() if key in started and torch.equal(value, started[key])}
        assert not {key for key in still if not key.endswith(CANCELLED.get(name, "none"))}

    @pytest.mark.parametrize("name", ["se", "mhsa", "sk", "attention_gate"])
    def test_outputs_are_equal_under_autocast(self, name: str) -> None:
        """The gate, in single precision, does not convert the maps, so later layers compute in the same dtype."""
        torch.manual_seed(0)
        net, x = UNet(2, 1, 2, (8, 8), (2,), num_res_units=1, norm="batch").eval(), torch.randn(2, 1, 8, 8)
        replaced = -1 if name == "sk" else 0  # of the arguments: the map that the mechanism replaces
        dtypes = set()
        with torch.autocast("cpu", torch.bfloat16):
            plain = net(x)
            insert_attention(net, name, at="conv" if name == "sk" else "skip", identity=True)
            for module in net.modules():
                if isinstance(module, IdentityAtStart):
                    module.register_forward_hook(lambda _, maps, y: dtypes.add((maps[replaced].dtype, y.dtype)))
            found = net(x)
        assert dtypes == {(torch.bfloat16, torch.bfloat16)}
        assert torch.equal(found, plain)

    def test_it_is_not_the_identity_by_default(self) -> None:
        net, x = unet(), torch.randn(1, 1, 16, 16)
        plain = net(x)
        assert not torch.equal(insert_attention(net, "se", at="encoder")(x), plain)


@pytest.mark.scorecard("insertion")
class TestCheckpoints:
    def test_one_of_the_plain_network(self) -> None:
        net, other = unet(), unet()
        nn.init.ones_(other.model[0].conv[0].conv.weight)
        insert_attention(net, "se", at="encoder")
        new = load_pretrained(net, other.state_dict())
        assert new == [key for key in net.state_dict() if "attn3d" in key]
        assert torch.equal(net.model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)

    def test_one_with_the_same_attention(self) -> None:
        net, other = (insert_attention(unet(), "cbam", at=("encoder", "skip")) for _ in range(2))
        for parameter in attention_parameters(other):
            nn.init.normal_(parameter)
        assert load_pretrained(net, other.state_dict()) == []
        x = torch.randn(1, 1, 16, 16)
        assert torch.equal(net(x), other(x))

    @pytest.mark.parametrize("compiled", ["network", "checkpoint", "both"])
    def test_one_of_or_for_a_compiled_network(self, compiled: str) -> None:
        net, other = insert_attention(unet(), "se", at="encoder"), unet()
        nn.init.ones_(other.model[0].conv[0].conv.weight)
        keys = [key for key in net.state_dict() if "attn3d" in key]
        given = net if compiled == "checkpoint" else torch.compile(net)
        saved = other if compiled == "network" else torch.compile(other)
        assert load_pretrained(given, saved.state_dict()) == keys
        assert torch.equal(net.model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)

    def test_one_of_a_network_with_a_shared_module(self) -> None:
        net, other = backbone(), backbone()
        for each in (net, other):
            each.add_module("alias", each.layer1)
        insert_attention(net, "se", at="path:layer1")
        assert load_pretrained(net, other.state_dict()) == [key for key in net.state_dict() if ".attn3d." in key]

    def test_one_with_an_extra_state(self) -> None:
        class Versioned(Adds):
            def get_extra_state(self) -> dict[str, int]:
                return {"version": 1}

            def set_extra_state(self, state: dict[str, int]) -> None:
                self.version = state["version"]

        net, state = Versioned(), Versioned().state_dict()
        load_pretrained(insert_attention(net, "se", at="path:stem"), state)
        assert net.version == 1

    @pytest.mark.parametrize("of", ["network", "checkpoint"])
    def test_one_of_or_for_a_network_in_data_parallel(self, of: str) -> None:
        net, other = insert_attention(unet(), "se", at="encoder"), unet()
        nn.init.ones_(other.model[0].conv[0].conv.weight)
        new = load_pretrained(
            *(nn.DataParallel(net), other.state_dict())
            if of == "network"
            else (net, nn.DataParallel(other).state_dict())
        )
        assert [key.removeprefix("module.") for key in new] == [key for key in net.state_dict() if "attn3d" in key]
        assert torch.equal(net.model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)

    @pytest.mark.parametrize("prefix", ["net.", "model.", "model.module._orig_mod.", "a.b."])
    def test_one_of_or_for_a_wrapper(self, prefix: str) -> None:
        net, other = insert_attention(unet(), "se", at="encoder"), unet()
        nn.init.ones_(other.model[0].conv[0].conv.weight)
        new = load_pretrained(net, {prefix + key: value for key, value in other.state_dict().items()})
        assert torch.equal(net.model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)
        wrapper = nn.ModuleDict({"net": insert_attention(unet(), "se", at="encoder")})
        assert load_pretrained(wrapper, other.state_dict()) == [f"net.{key}" for key in new]
        assert torch.equal(wrapper["net"].model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)

    def test_one_of_an_average_of_weights(self) -> None:
        net, other = insert_attention(unet(), "se", at="encoder"), unet()
        nn.init.ones_(other.model[0].conv[0].conv.weight)
        assert all("attn3d" in key for key in load_pretrained(net, AveragedModel(other).state_dict()))
        assert torch.equal(net.model[0].conv[0].conv.weight, other.model[0].conv[0].conv.weight)

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("loss.weight", r"Keys unknown: loss\.weight$"),
            ("model.0.conv.unit0.conv.weight", r"Keys missing: .*; unknown: net\.model\.0"),  # has no prefix
        ],
    )
    def test_one_of_a_wrapper_that_has_more_is_refused(self, key: str, message: str) -> None:
        state = {f"net.{name}": value for name, value in unet().state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_pretrained(unet(), state | {key: torch.ones(1)})

    def test_one_that_is_no_state_dictionary(self) -> None:
        net = insert_attention(unet(), "se", at="encoder")
        with pytest.raises(TypeError, match=r"`state_dict` must be a state dictionary, .* got 'net\.pt'"):
            load_pretrained(net, "net.pt")
        with pytest.raises(TypeError, match=r"`state_dict` must map names to tensors, .* give its entry 'network'$"):
            load_pretrained(net, {"network": unet().state_dict(), "epoch": 3})

    def test_many_keys_that_do_not_fit_are_counted(self) -> None:
        net = insert_attention(unet(), "se", at="encoder")
        with pytest.raises(ValueError, match=r"unknown: other\.0, .*, other\.9 and 2 more$"):
            load_pretrained(net, unet().state_dict() | {f"other.{index}": torch.ones(1) for index in range(12)})

    def test_one_whose_modules_have_versions(self) -> None:
        class Versioned(nn.Conv2d):
            _version = 2

            def _load_from_state_dict(self, state_dict: dict, prefix: str, metadata: dict, *rest: object) -> None:
                assert metadata.get("version") == 2  # of an older one, the weights would be converted
                super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

        for net in (nn.Sequential(Versioned(1, 4, 1), nn.ReLU()), Versioned(1, 4, 1)):
            state = nn.DataParallel(copy.deepcopy(net)).state_dict()
            if isinstance(net, nn.Sequential):
                insert_attention(net, "se", at="path:0", input_shape=(1, 1, 6, 5))
            load_pretrained(net, state)

    def test_one_of_a_network_with_a_child_of_the_name_of_a_wrapper(self) -> None:
        net = nn.Sequential()
        net.add_module("a", nn.Conv2d(1, 4, 1))
        net.add_module("module", nn.Sequential())
        net.module.add_module("a", nn.Conv2d(4, 4, 1))
        assert load_pretrained(net, net.state_dict()) == []

    def test_one_with_a_part_of_the_attention(self) -> None:
        saved = insert_attention(unet(), "se", at="encoder").state_dict()
        net = insert_attention(insert_attention(unet(), "se", at="encoder"), "eca", at="encoder")
        assert load_pretrained(net, saved) == [key for key in net.state_dict() if ".attn3d.1." in key]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("model.0.conv.unit0.conv.weight"), "missing: model.0.conv.unit0.conv.weight"),
            (lambda state: state.pop("model.0.attn3d.0.squeeze.weight"), "missing: model.0.attn3d.0.squeeze.weight"),
            (lambda state: state.update({"module.x": torch.ones(1)}), "unknown: module.x"),
            (
                lambda state: state.update({"model.0.conv.unit0.conv.weight": torch.ones(1)}),
                "of another shape: model.0.conv.unit0.conv.weight",
            ),
        ],
    )
    def test_one_that_does_not_fit(self, change: object, message: str) -> None:
        net = insert_attention(unet(), "se", at="encoder")
        state = {key: torch.full_like(value, 7) for key, value in net.state_dict().items()}
        change(state)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(ValueError, match=message):
            load_pretrained(net, state)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def test_a_network_is_rebuilt_from_plain_data(self) -> None:
        net = insert_attention(unet(), "se", at=("encoder", "skip"), reduction=2)
        insert_attention(net, ("cbam", {"kernel_size": 3}), at="decoder", identity=True, input_shape=(1, 1, 32, 32))
        insert_attention(net, "eca", at="encoder", stages=-1)
        insert_attention(net, "sk", at="conv:.*2.1.conv.unit0.conv")
        plan = json.loads(json.dumps(inserted_attention(net)))
        assert [item["spec"][0] for item in plan] == ["se", "cbam", "eca", "sk"]
        assert plan[1] == {
            "spec": ["cbam", {"kernel_size": 3}],
            "at": ["decoder:model.1.submodule.2"],
            "identity": True,
            "input_shape": [1, 1, 32, 32],
        }
        buffer = io.BytesIO()
        torch.save({"state": net.state_dict(), "attention": inserted_attention(net)}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        again = unet()
        for item in saved["attention"]:
            insert_attention(again, **item)
        assert list(again.state_dict()) == list(net.state_dict())
        again.load_state_dict(saved["state"])
        x = torch.randn(1, 1, 16, 16)
        assert torch.equal(again(x), net(x))
        assert inserted_attention(again) == inserted_attention(net)
        assert inserted_attention(remove_attention(again)) == []

    def test_the_networks_of_a_module_keep_their_attention_apart(self) -> None:
        net, x = Two(), torch.randn(1, 1, 16, 16)
        with pytest.raises(ValueError, match="inserted into one module, got 'student', 'teacher': pass one of the"):
            inserted_attention(net)
        again, plain = Two(attention=False), Two(attention=False)
        for part in ("student", "teacher"):
            for item in inserted_attention(net.get_submodule(part)):
                insert_attention(again.get_submodule(part), **item)
        assert load_pretrained(again, net.state_dict()) == []
        assert torch.equal(again(x), net(x))
        inserted = attention_parameters(net.student) + attention_parameters(net.teacher)
        assert set(attention_parameters(net)) == set(inserted)
        new = load_pretrained(net, plain.state_dict())
        assert new == [key for key in net.state_dict() if ".attn3d" in key]
        assert list(remove_attention(net).state_dict()) == list(plain.state_dict())
        assert torch.equal(net(x), plain(x))
        assert inserted_attention(net) == []

    def test_attention_that_was_inserted_into_a_part_and_into_the_whole(self) -> None:
        net = backbone()
        insert_attention(net.layer1, "se", at="path:1", input_shape=(1, 4, 16, 16))
        insert_attention(net, "eca", at="path:layer2")
        with pytest.raises(ValueError, match="got 'layer1', `net` itself: pass one of the parts"):
            inserted_attention(net)
        assert [item["at"] for item in inserted_attention(net.layer1)] == [["path:1"]]
        insert_attention(net, "eca", at="path:layer1.2")
        with pytest.raises(ValueError, match="got `net` itself, a module around it"):
            inserted_attention(net.layer1)

    def test_attention_is_found_below_other_paths_and_later_wrappers(self) -> None:
        net = unet()
        for at in ("encoder", "skip", "bottleneck", "conv"):
            insert_attention(net, "sk" if at == "conv" else "se", at=at)
        expected = inserted_attention(net)
        wrapper = nn.ModuleDict({"part": net.model[0], "net": net})  # the part is found first
        net.model[1].submodule = torch.compile(net.model[1].submodule, backend="eager")
        assert inserted_attention(wrapper) == inserted_attention(net) == expected

    def test_classes_patterns_and_numbers_of_numpy_become_plain_data(self) -> None:
        net = insert_attention(unet(), attn3d.CBAM, at="encoder", reduction=np.int64(2))
        insert_attention(net, ("mhsa", {"pattern": attn3d.Window((2, 4), shift=True)}), at="bottleneck")
        insert_attention(net, "mhsa", at="skip", pattern=("window", {"size": np.int64(4)}))
        specs = [item["spec"] for item in json.loads(json.dumps(inserted_attention(net)))]
        assert specs == [
            ["cbam", {"reduction": 2}],
            ["mhsa", {"pattern": ["window", {"size": [2, 4], "shift": True}]}],
            ["mhsa", {"pattern": ["window", {"size": 4}]}],
        ]
        again = unet()
        for item in inserted_attention(net):
            insert_attention(again, **item)
        again.load_state_dict(net.state_dict())
        x = torch.randn(1, 1, 16, 16)
        assert torch.equal(again(x), net(x))

    def test_what_cannot_be_plain_data_is_returned_as_it_is(self) -> None:
        class Mine(attn3d.Window):
            """A pattern without a name of its own."""

        class Scale(nn.Module):
            def __init__(self, spatial_dims: int, channels: int, prior: object) -> None:
                super().__init__()

            def forward(self, x: Tensor) -> Tensor:
                return x

        prior, pattern = torch.ones(3), Mine(4)
        net = insert_attention(unet(), Scale, at="encoder", prior=prior)
        insert_attention(net, "mhsa", at="bottleneck", pattern=pattern)
        first, second = (item["spec"][1] for item in inserted_attention(net))
        assert first["prior"] is prior
        assert second["pattern"] is pattern

    def test_parameters_are_separate(self) -> None:
        net = unet()
        host = set(net.parameters())
        insert_attention(net, "sk", at=("encoder", "conv"))
        own = attention_parameters(net)
        assert set(own).isdisjoint(host)
        assert set(own) | host == set(net.parameters())
        assert len(own) == len(set(own))


@pytest.mark.scorecard("insertion")
@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_in_place_operations_after_attention_work_with_metatensors(name: str) -> None:
    """MONAI trains on MetaTensors, and in many networks an in-place activation follows."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2))
    insert_attention(net, name, at="path:0", input_shape=(2, 1, 8, 8))
    output = net(MetaTensor(torch.randn(2, 1, 8, 8)))
    output.sum().backward()
    assert isinstance(output, MetaTensor)
    assert all(parameter.grad is not None for parameter in attention_parameters(net))


@pytest.mark.scorecard("insertion")
class TestHooks:
    def test_later_hooks_of_the_user_run(self) -> None:
        net, x = insert_attention(unet(), "se", at="encoder"), torch.randn(1, 1, 16, 16)
        calls = []
        handle = net.model[0].register_forward_hook(lambda module, inputs, output: calls.append(output))
        attended = net(x)
        assert torch.equal(calls[0], net.model[0](x))
        handle.remove()
        assert torch.equal(net(x), attended)

    def test_insertion_after_compiling_takes_effect(self) -> None:
        net, x = unet(), torch.randn(1, 1, 16, 16)
        compiled = torch.compile(net, backend="eager")
        plain = compiled(x)
        assert insert_attention(compiled, "se", at="encoder", stages=0) is compiled
        assert not torch.equal(compiled(x), plain)
        assert torch.equal(compiled(x), net(x))
        assert torch.equal(remove_attention(compiled)(x), plain)


class TestFurtherArguments:
    class Up(nn.Module):
        def forward(self, x: Tensor, skip: Tensor, shift: float = 0.0) -> Tensor:
            return x + skip + shift

    class OptionalSkip(nn.Module):
        def forward(self, x: Tensor, skip: Tensor | None, shift: float = 0.0) -> Tensor:
            return x + shift if skip is None else x + skip + shift

    class AnyNumber(nn.Module):
        def forward(self, *maps: Tensor) -> Tensor:
            return sum(maps)

    class Net(nn.Module):
        def __init__(self, up: nn.Module) -> None:
            super().__init__()
            self.stem, self.up, self.head = nn.Conv2d(1, 4, 3, padding=1), up, nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(self.up(y, y, 3.0))

    @pytest.mark.parametrize("place", [first_argument("up"), second_argument("up")], ids=["first", "second"])
    @pytest.mark.parametrize("up", [Up, OptionalSkip, AnyNumber])
    def test_a_hook_keeps_further_arguments(self, up: type[nn.Module], place: object) -> None:
        register_sites(self.Net, {"skip": [place]})
        net, x = self.Net(up()), torch.randn(2, 1, 8, 8)
        insert_attention(net, "se", at="skip")
        [(_, [attention])] = containers(net)
        y = net.stem(x)
        torch.testing.assert_close(net(x), net.head(attention(y) + y + 3.0))

    def test_a_hook_of_the_first_argument_keeps_arguments_that_are_left_out_or_named(self) -> None:
        class Scaled(nn.Module):
            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                return x * scale

        net, x = nn.Sequential(Scaled()), torch.randn(2, 4)
        container_at(net, first_argument("0"), 4, "").append(nn.ReLU())
        assert torch.equal(net[0](x), x.relu())
        assert torch.equal(net[0](x, scale=2.0), 2 * x.relu())


class TestOwnNetworks:
    def test_registering_sites(self) -> None:
        class Up(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.conv = nn.ConvTranspose3d(4, 4, 2, 2), nn.Conv3d(8, 4, 1)

            def forward(self, x: Tensor, skip: Tensor) -> Tensor:
                return self.conv(torch.cat([self.up(x), skip], 1))

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv3d(4, 4, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.conv(x)

        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.block = nn.Conv3d(1, 4, 3, padding=1), Residual()
                self.down, self.up, self.head = nn.Conv3d(4, 4, 2, 2), Up(), nn.Conv3d(4, 2, 1)

            def forward(self, x: Tensor, time: Tensor) -> Tensor:
                x = self.block(self.stem(x) + time)
                return self.head(self.up(self.down(x), x))

        class Child(Own):
            pass

        register_block(Residual, residual="conv")
        register_sites(
            Own,
            {"encoder": ["block"], "bottleneck": ["down"], "decoder": ["up"], "skip": [second_argument("up")]},
            run=lambda net, x: net(x, x.new_zeros(1)),
        )
        net, x = Child().eval(), torch.randn(1, 1, 8, 8, 8)
        assert [(site.kind, site.path) for site in attention_sites(net, x.shape)] == [
            ("encoder", "block"),
            ("decoder", "up"),
            ("bottleneck", "down"),
            ("skip", "up"),
            ("block", "block"),
            ("residual", "block.conv"),
            ("conv", "block.conv"),
        ]
        plain = net(x, torch.ones(1))
        insert_attention(net, "gc", at=("encoder", "skip", "residual", "decoder", "bottleneck"), identity=True)
        assert torch.equal(net(x, torch.ones(1)), plain)
        with pytest.raises(ValueError, match="'neck'"):
            register_sites(Own, {"neck": ["down"]})
        register_sites(Child, {"encoder": ["block"], "skip": [second_argument("upp")]})
        with pytest.raises(ValueError, match="`sites` of Child must name its modules, got 'upp' of kind 'skip'"):
            insert_attention(Child(), "se", at="skip")
        insert_attention(Child(), "se", at="encoder")  # the other kinds can be used

    def test_layers_that_only_lead_to_a_skip_have_the_stage_of_the_skip(self) -> None:
        class Lateral(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
                self.beside, self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(4, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.first(x)
                return self.head(self.second(x) + self.beside(x))

        register_sites(Lateral, {"encoder": ["first"], "bottleneck": ["second"], "skip": ["beside"]})
        convs = [site for site in attention_sites(Lateral()) if site.kind == "conv"]
        assert [(site.stage, site.path) for site in convs] == [(0, "beside.0"), (1, "second")]

    def test_sites_that_depend_on_the_network(self) -> None:
        class Stack(nn.Module):
            def __init__(self, depth: int) -> None:
                super().__init__()
                self.blocks = nn.ModuleList(nn.Conv1d(2, 2, 3, padding=1) for _ in range(depth))

            def forward(self, x: Tensor) -> Tensor:
                for block in self.blocks:
                    x = block(x)
                return x.mean(-1)

        @register_sites(Stack)
        def stack(net: Stack) -> dict[str, list[str]]:
            return {"encoder": [f"blocks.{stage}" for stage in range(len(net.blocks))]}

        net = insert_attention(Stack(3), "se", at="encoder", stages=(0, -1))
        assert inserted_at(net) == ["blocks.0.attn3d", "blocks.2.attn3d"]


class Adds(nn.Module):
    """A network that adds a skip inline and, with `residual`, also in the next stage."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 4, 3, padding=1), Backbone.Block(4) if residual else nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.head(self.down(skip) + skip)


class TestSums:
    def test_attention_at_a_skip_acts_only_where_it_is_added(self) -> None:
        register_sites(Adds, {"skip": [summed("stem")]})
        net, x = Adds(), torch.randn(2, 1, 8, 8)
        insert_attention(net, "se", at="skip")
        [(path, mechanisms)] = containers(net)
        assert path == "stem.attn3d_summed"
        skip = net.stem(x)
        torch.testing.assert_close(net(x), net.head(net.down(skip) + mechanisms[0](skip)))

    def test_a_map_that_is_also_added_elsewhere_is_refused(self) -> None:
        register_sites(Adds, {"skip": [summed("stem")]})
        with pytest.raises(ValueError, match=r"skip:stem must be .* by one module, but is added by down, the net"):
            insert_attention(Adds(residual=True), "se", at="skip")

    def test_a_map_that_is_not_added_is_refused(self) -> None:
        register_sites(Adds, {"skip": [summed("down.conv1")], "decoder": [summed("head")]})
        with pytest.raises(ValueError, match=r"skip:down.conv1 must be added .* by one module, but is added to no map"):
            insert_attention(Adds(residual=True), "se", at="skip")
        with pytest.raises(ValueError, match="decoder:head returns the prediction"):
            insert_attention(Adds(residual=True), "se", at="decoder")

    @pytest.mark.parametrize("spec", ["se", "attention_gate"])
    def test_on_either_side_of_the_sum(self, spec: str) -> None:
        class AddsLeft(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                return self.head(skip + self.down(skip))

        x, outputs = torch.randn(2, 1, 8, 8), []
        for cls in (Adds, AddsLeft):
            register_sites(cls, {"skip": [summed("stem")]})
            torch.manual_seed(0)
            outputs.append(insert_attention(cls(), spec, at="skip")(x))
        assert torch.equal(*outputs)

    @pytest.mark.parametrize("channels_last", ["weights", "image"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda skip, up: skip.contiguous(),
            lambda skip, up: skip.to(memory_format=torch.contiguous_format),
            lambda skip, up: functional.dropout(skip, 1e-9, training=skip.requires_grad),
        ],
    )
    def test_a_skip_that_is_changed_to_another_format_before_the_sum(self, change: Callable, channels_last: str):
        class AddsChanged(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                up = self.down(skip)
                return self.head(up + change(skip, up))

        register_sites(AddsChanged, {"skip": [summed("stem")]})
        net, x = AddsChanged(), torch.randn(2, 1, 8, 8)
        if channels_last == "weights":
            net.to(memory_format=torch.channels_last)
        insert_attention(net, "se", at="skip")
        [(_, mechanisms)] = containers(net)
        skip = net.stem(x.to(memory_format=torch.channels_last))
        expected = net.head(net.down(skip) + mechanisms[0](skip))
        torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected)

    @pytest.mark.parametrize("end", [lambda x: x.double().float(), lambda x: x.mT.contiguous().mT.contiguous()])
    def test_a_stage_that_changes_the_format_at_its_end(self, end: Callable) -> None:
        class Stage(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return end(super().forward(x))

        class Ends(Adds):
            def __init__(self) -> None:
                super().__init__()
                self.stem = Stage(1, 4, 3, padding=1)

        register_sites(Ends, {"skip": [summed("stem")]})
        assert inserted_at(insert_attention(Ends(), "se", at="skip")) == ["stem.attn3d_summed"]

    @pytest.mark.parametrize("name", ["se", "attention_gate"])
    def test_a_skip_that_is_added_in_another_dtype(self, name: str) -> None:
        class AddsInDouble(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                return self.head((self.down(skip).double() + skip.double()).to(x.dtype))

        outputs, x = [], torch.randn(2, 1, 8, 8)
        for cls in (Adds, AddsInDouble):
            register_sites(cls, {"skip": [summed("stem")]})
            torch.manual_seed(0)
            outputs.append(insert_attention(cls(), name, at="skip")(x))
        torch.testing.assert_close(*outputs)

    def test_a_number_that_is_added_to_a_skip(self) -> None:
        class AddsNumber(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                return self.head(self.down(skip + 1.0) + skip)

        register_sites(AddsNumber, {"skip": [summed("stem")]})
        net, x = insert_attention(AddsNumber(), "se", at="skip"), torch.randn(2, 1, 8, 8)
        [(_, mechanisms)] = containers(net)
        skip = net.stem(x)
        torch.testing.assert_close(net(x), net.head(net.down(skip + 1.0) + mechanisms[0](skip)))

    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_skip_that_is_added_in_another_module(self, compiled: bool) -> None:
        """Of two nested modules, the inner one also adds a skip of its own."""

        class Inner(Adds):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
                skip = self.stem(x)
                deep = self.down(skip)
                return deep, self.head(deep) + skip

        class Decoder(nn.Conv2d):
            def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
                return super().forward(x) + skip

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.decoder, self.head = Inner(), Decoder(4, 4, 1), nn.Conv2d(4, 2, 1)
                self.inner.head = nn.Conv2d(4, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                deep, y = self.inner(x)
                return self.head(self.decoder(y, deep))

        register_sites(Outer, {"skip": [summed("inner.stem"), summed("inner.down")]})
        net, x = insert_attention(Outer(), "se", at="skip"), torch.randn(2, 1, 8, 8)
        of_stem, of_down = (mechanisms[0] for _, mechanisms in containers(net))
        skip = net.inner.stem(x)
        deep = net.inner.down(skip)
        expected = net.head(net.decoder(net.inner.head(deep) + of_stem(skip), of_down(deep)))
        torch.testing.assert_close((torch.compile(net, backend="eager") if compiled else net)(x), expected)

    def test_a_sum_in_place_leaves_the_signal_for_backward(self) -> None:
        class AddsInPlace(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                up = self.down(skip)
                up += skip
                return self.head(up)

        register_sites(AddsInPlace, {"skip": [summed("stem")]})
        net = insert_attention(AddsInPlace(), functools.partial(attn3d.AttentionGate, reduction=1), at="skip")
        net(torch.randn(2, 1, 8, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in attention_parameters(net))

    def test_a_skip_that_is_added_twice_is_attended_once(self) -> None:
        class AddsTwice(Adds):
            def forward(self, x: Tensor) -> Tensor:
                skip = self.stem(x)
                return self.head(self.down(skip + self.down(skip)) + skip)

        register_sites(AddsTwice, {"skip": [summed("stem")]})
        net, calls = insert_attention(AddsTwice(), "se", at="skip"), []
        net.stem.attn3d_summed[0].register_forward_hook(lambda *call: calls.append(call))
        net(torch.randn(2, 1, 8, 8))
        assert len(calls) == 1

    def test_two_skips_that_are_added_to_each_other(self) -> None:
        register_sites(Adds, {"skip": [summed("stem"), summed("down")]})
        net, x = insert_attention(Adds(), "se", at="skip"), torch.randn(2, 1, 8, 8)
        (_, of_stem), (_, of_down) = containers(net)
        skip = net.stem(x)
        torch.testing.assert_close(net(x), net.head(of_stem[0](skip) + of_down[0](net.down(skip))))

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_output_of_a_network_with_skips_as_a_skip_of_another(self, order: int) -> None:
        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.beside, self.head = Adds(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                skip = self.inner(x)
                return self.head(self.beside(skip) + skip)

        register_sites(Adds, {"skip": [summed("stem")]})
        register_sites(Outer, {"skip": [summed("inner")]})
        net, x = Outer(), torch.randn(2, 1, 8, 8)
        for part in (net, net.inner)[::order]:
            insert_attention(part, "se", at="skip")
        of_inner, of_stem = net.inner.attn3d_summed[0], net.inner.stem.attn3d_summed[0]
        stem = net.inner.stem(x)
        skip = net.inner.head(net.inner.down(stem) + of_stem(stem))
        torch.testing.assert_close(net(x), net.head(net.beside(skip) + of_inner(skip)))

    def test_a_module_that_is_called_with_a_skip_and_returns_another(self) -> None:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.join, self.head = nn.Conv2d(1, 4, 1), Joins.Join(), nn.Conv2d(4, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                first = self.stem(x)
                second = self.join(first, first)
                return self.head(torch.relu(second) + second)

        register_sites(Both, {"decoder": [SKIP], "skip": [summed("join")]})
        net, x = (
            insert_attention(insert_attention(Both(), "se", at="decoder"), "se", at="skip"),
            torch.randn(2, 1, 8, 8),
        )
        assert inserted_at(net) == ["join.attn3d_skip", "join.attn3d_summed"]
        (_, [on_first]), (_, [on_second]) = containers(net)
        first = net.stem(x)
        second = first + on_first(first)
        torch.testing.assert_close(net(x), net.head(torch.relu(second) + on_second(second)))

    @pytest.mark.parametrize("first", ["skip", "encoder"])
    def test_the_skip_is_the_output_of_its_stage_with_attention(self, first: str) -> None:
        register_sites(Adds, {"encoder": ["stem"], "skip": [summed("stem")]})
        net, x = Adds(), torch.randn(2, 1, 8, 8)
        for at in (first, "encoder" if first == "skip" else "skip"):
            insert_attention(net, "se", at=at)
        stage = net.stem(x)  # outside the network's forward, where attention at skips does not act
        [skip] = dict(containers(net))["stem.attn3d_summed"]
        torch.testing.assert_close(net(x), net.head(net.down(stage) + skip(stage)))

    def test_an_error_leaves_nothing_behind(self) -> None:
        net, x = insert_attention(SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)), "se", at="skip"), torch.ones(1)
        with pytest.raises(RuntimeError):
            net(x)
        assert torch.overrides._get_current_function_mode_stack() == []

    def test_a_keyboard_interrupt_leaves_nothing_behind_after_the_next_call(self) -> None:
        """Also if the interrupted network was inside another one, which PyTorch leaves without calling its hooks."""

        class Outer(Adds):
            def __init__(self) -> None:
                super().__init__()
                self.down = nn.Sequential(nn.Conv2d(4, 1, 1), Inner(), nn.Conv2d(2, 4, 1))

        class Inner(Adds):
            pass

        def interrupt(*call: object) -> None:
            raise KeyboardInterrupt

        for cls in (Outer, Inner):
            register_sites(cls, {"skip": [summed("stem")]})
        net, x = Outer(), torch.randn(2, 1, 8, 8)
        insert_attention(insert_attention(net, "se", at="skip").down[1], "se", at="skip")
        expected = net(x)
        handle = net.down[1].head.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            net(x)
        handle.remove()
        torch.testing.assert_close(net(x), expected)
        assert torch.overrides._get_current_function_mode_stack() == []

    def test_a_network_that_calls_itself(self) -> None:
        class Twice(Adds):
            def forward(self, x: Tensor, depth: int = 1) -> Tensor:
                skip = self.stem(x)
                inner = self(x, depth - 1).mean(1, keepdim=True) if depth else 0.0
                return self.head(self.down(skip) + skip) + inner

        register_sites(Twice, {"skip": [summed("stem")]})
        net, x = Twice(), torch.randn(2, 1, 8, 8)
        insert_attention(net, "se", at="skip")
        once = net(x, 0)
        torch.testing.assert_close(net(x), once + once.mean(1, keepdim=True))

    def test_a_stage_that_is_compiled_separately(self) -> None:
        net, x = SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)).eval(), torch.randn(1, 1, 16, 16)
        expected = insert_attention(net, "se", at="skip")(x)
        net.down_layers[0].compile(backend="eager")
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda net: attn3d.insert_attention(net, "se", at="encoder"),
        attn3d.attention_sites,
        attn3d.remove_attention,
        attn3d.inserted_attention,
        attn3d.attention_parameters,
        lambda net: attn3d.attention_maps(net, torch.zeros(1, 1, 8, 8, 8)),
    ],
)
def test_an_argument_that_is_not_a_network_is_refused(call):
    with pytest.raises(TypeError, match=r"`net` must be a torch\.nn\.Module, got <class 'monai\..*UNet'>"):
        call(UNet)


def test_a_shape_is_required_if_all_guesses_fail():
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 3)

        def forward(self, x):
            raise RuntimeError("never so")

    with pytest.raises(ValueError, match=r"`input_shape` .* must be given: .* the last failed with: never so"):
        attn3d.insert_attention(Choosy(), "se", at="path:conv")


def test_dtype_and_mode_are_those_of_the_module_at_the_site():
    """Where a part of the network has another dtype or mode, such as a frozen encoder."""

    class Cast(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype))

    net = nn.Sequential(nn.Conv2d(1, 4, 1), Cast(4, 4, 1).double().eval(), Cast(4, 2, 1))
    insert_attention(net, "bam", at="path:[01]", input_shape=(2, 1, 5, 5))
    assert {parameter.dtype for parameter in net[0].attn3d.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in net[1].attn3d.parameters()} == {torch.float64}
    assert [{module.training for module in net[index].attn3d.modules()} for index in (0, 1)] == [{True}, {False}]


class EncoderOfAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.one(x)
        return [y, self.two(y)]


class NetOfAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = EncoderOfAList(), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(torch.cat(self.encoder(x), 1))


def test_containers_of_items_have_the_mode_of_the_network():
    register_sites(NetOfAList, {"skip": items("encoder", 2)})
    net = insert_attention(NetOfAList().eval(), "bam", at="skip")
    assert not any(module.training for module in net.modules())


def test_a_network_with_repeated_names_is_one_network():
    """The path of a container may contain the path of its site more than once."""
    net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Sequential(nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 1)))
    insert_attention(net, "se", at="path:0", input_shape=(1, 1, 4, 4, 4))
    insert_attention(net, "gc", at="path:1.0", input_shape=(1, 1, 4, 4, 4))
    net[0] = nn.Sequential(net[0], nn.ReLU())  # wrapped later: its attention is in "0.0"
    assert [item["spec"][0] for item in inserted_attention(net)] == ["se", "gc"]
    assert set(attn3d.attention_maps(net, torch.randn(1, 1, 4, 4, 4))) == {"path:0", "path:1.0"}


def test_a_state_can_be_loaded_into_an_average_of_weights():
    net = insert_attention(unet(), "se", at="encoder")
    average = AveragedModel(net)
    given = {key: torch.full_like(value, 0.5) for key, value in net.state_dict().items()}
    assert load_pretrained(average, given) == []
    assert all(torch.equal(value, given[key]) for key, value in average.module.state_dict().items())


@pytest.mark.parametrize(
    "keys", [["long.net.a", "net.a"], ["net.a", "long.net.a"], ["long.net.a", "net.a", "n_averaged"]], ids=str
)
def test_the_prefix_of_a_wrapper_is_the_shortest_of_those_of_most_keys(keys):
    assert wrapper_prefix(keys, ["a", "n_averaged"]) == "net."


class ModulesToSave(nn.Module):
    """Like PEFT's wrapper of a module that is trained beside adapters: it keeps the module and runs a copy."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})

    def forward(self, *args: Tensor) -> Tensor:
        return self.modules_to_save["default"](*args)


def test_attention_that_peft_has_copied_is_listed_once_and_removed() -> None:
    plain, net, x = unet(), insert_attention(unet(), "se", at=("encoder", "skip")), torch.randn(1, 1, 8, 8)
    expected, names = inserted_attention(net), attn3d.attention_maps(net, x).keys()
    for path, container in list(containers(net)):
        front, _, name = path.rpartition(".")
        setattr(net.get_submodule(front), name, ModulesToSave(container))
    assert inserted_attention(net) == expected
    maps = attn3d.attention_maps(net, x)
    assert maps.keys() == names
    assert all(maps.values())
    assert list(remove_attention(net).state_dict()) == list(plain.state_dict())
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net(x), plain(x))


def test_attention_that_peft_has_copied_takes_no_more() -> None:
    net = insert_attention(unet(), "se", at="encoder", stages=0)
    net.model[0].attn3d = ModulesToSave(net.model[0].attn3d)
    with pytest.raises(ValueError, match=r"encoder:model\.0 has attention that PEFT has wrapped; insert"):
        insert_attention(net, "eca", at="encoder", stages=0)
    insert_attention(net, "eca", at="bottleneck")


@pytest.mark.parametrize("path", ["model.0.attn3d", "model.0"])
def test_of_attention_that_peft_has_copied_the_copy_is_listed(path: str) -> None:
    """It runs in place of the original, whose parameters are frozen and get no gradients."""
    net, x = insert_attention(unet(), "se", at=("encoder", "skip")), torch.randn(1, 1, 8, 8)
    expected, names = inserted_attention(net), attn3d.attention_maps(net, x).keys()
    front, _, name = path.rpartition(".")
    setattr(net.get_submodule(front), name, ModulesToSave(net.get_submodule(path)))
    net(x).sum().backward()
    parameters = attention_parameters(net)
    assert len(parameters) == 2 * len(attn3d.attention_maps(net, x))
    assert all(parameter.grad is not None for parameter in parameters)
    assert inserted_attention(net) == expected
    assert attn3d.attention_maps(net, x).keys() == names
    assert torch.equal(saved_and_loaded(copy.deepcopy(copy.deepcopy(net)))(x), net(x))
    assert not any("attn3d" in key for key in remove_attention(net).state_dict())
    net(x)


def test_attention_of_parts_of_two_networks_is_listed() -> None:
    """The networks themselves are not in the module, so the records of both are alike."""
    nets = [nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)) for _ in range(2)]
    for net in nets:
        insert_attention(net, "se", at="path:0")
    (listed,) = inserted_by_network(nn.ModuleDict({"one": nets[0][0], "two": nets[1][0]})).values()
    assert len(listed) == 2
