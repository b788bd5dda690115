"""Attention in nnU-Net's networks, or in stand-ins for them if nnU-Net is not installed."""

import copy
import importlib.util
import inspect
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import attn3d
from attn3d.adapters.nnunet import NETWORK, UNetWithAttention, add_configuration, app, resolved
from attn3d.insertion import (
    attention_parameters,
    attention_sites,
    inserted_attention,
    load_pretrained,
    remove_attention,
)
from tests.adapters import stand_in
from tests.marks import some

INSTALLED = importlib.util.find_spec("nnunetv2") is not None
ARCHITECTURES = "dynamic_network_architectures.architectures.unet"
KINDS = ("encoder", "decoder", "bottleneck", "skip", "block", "residual", "conv")

stand_in.install()


def plans(dims: int = 3, network: str = "PlainConvUNet") -> dict[str, Any]:
    """Small plans in the form in which nnU-Net writes them."""
    count = "n_blocks_per_stage" if network.startswith("Residual") else "n_conv_per_stage"
    arguments = {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * dims],
        count: [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": f"{ARCHITECTURES}.{network}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    full = {"data_identifier": "nnUNetPlans_full", "patch_size": [8] * dims, "architecture": architecture}
    return {"plans_name": "nnUNetPlans", "configurations": {"full": full, "low": {"inherits_from": "full"}}}


def build(architecture: dict[str, Any], deep_supervision: bool) -> nn.Module:
    """Builds the network with nnU-Net's function, or with the call that it makes if it is not installed."""
    torch.manual_seed(0)
    name, arguments, imports = architecture.values()
    if INSTALLED:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return get_network_from_plans(name, arguments, imports, 2, 3, deep_supervision=deep_supervision)
    arguments = arguments | {key: arguments[key] and locate(arguments[key]) for key in imports}
    net = locate(name)(input_channels=2, num_classes=3, **arguments | {"deep_supervision": deep_supervision})
    if hasattr(net, "initialize"):
        net.apply(net.initialize)
    return net


def with_attention(item: dict[str, Any], **of_plans: Any) -> dict[str, Any]:
    content = plans(**of_plans)
    add_configuration(content, "full", "new", item)
    return json.loads(json.dumps(content))["configurations"]["new"]["architecture"]


@pytest.mark.skipif(not INSTALLED, reason="nnunetv2 is not installed: the tests below use stand-ins for its networks")
def test_nnunet_reads_the_plans() -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    assert get_network_from_plans.__module__ == "nnunetv2.utilities.get_network_from_plans"
    assert "tests" not in locate(f"{ARCHITECTURES}.PlainConvUNet").__init__.__globals__["__name__"]
    net = build(with_attention({"spec": "cbam", "at": ["skip"]}), deep_supervision=True)
    assert len(net(torch.randn(1, 2, 8, 8, 8))) == 2


@pytest.mark.parametrize("network", some(["PlainConvUNet", "ResidualEncoderUNet"], lambda name: name[0] == "R"))
@pytest.mark.parametrize("dims", some([2, 3], lambda dims: dims == 2))
def test_every_kind(network: str, dims: int) -> None:
    kinds = [kind for kind in KINDS if kind != "residual" or network.startswith("Residual")]
    plain, x = (
        build(plans(dims, network)["configurations"]["full"]["architecture"], True),
        torch.randn(1, 2, *[8] * dims),
    )
    sites = attention_sites(plain, x.shape)
    assert list(dict.fromkeys(site.kind for site in sites)) == kinds
    skips = [site for site in sites if site.kind == "skip"]
    assert [(site.channels, site.shape) for site in skips] == [(8, (8,) * dims), (16, (4,) * dims)]
    for kind in kinds:
        item = {"spec": "sk" if kind == "conv" else "cbam", "at": kind, "identity": True}
        net = build(with_attention(item, dims=dims, network=network), True)
        assert type(net) is type(plain)
        assert load_pretrained(net, plain.state_dict())
        outputs = net(x)
        assert [list(output.shape[2:]) for output in outputs] == [[8] * dims, [4] * dims]
        assert all(torch.equal(*pair) for pair in zip(outputs, plain(x), strict=True))
        sum(output.square().mean() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in attention_parameters(net))
        assert list(remove_attention(net).state_dict()) == list(plain.state_dict())


def test_deep_supervision_is_switched_as_nnunet_does() -> None:
    net, x = build(with_attention({"spec": "se", "at": ["skip", "decoder"]}), True).eval(), torch.randn(1, 2, 8, 8, 8)
    first, second = net(x)
    net.decoder.deep_supervision = False
    assert torch.equal(net(x), first)
    assert second.shape == (1, 3, 4, 4, 4)


def test_initialisation_does_not_change_attention() -> None:
    """gc starts as the identity because some of its weights are zero; He initialisation would overwrite them."""
    net = build(with_attention({"spec": "gc", "at": "encoder"}), True)
    assert sum(not parameter.any() for parameter in attention_parameters(net)) >= 2 * 2, "weight and bias at two sites"
    assert net.encoder.stages[0][0].convs[0].conv.weight.std() > 0.1


def test_it_is_copied_and_pickled() -> None:
    net, x = build(with_attention({"spec": "cbam", "at": ["encoder", "skip"]}), True).eval(), torch.randn(1, 2, 8, 8, 8)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x)[0], net(x)[0])
        assert inserted_attention(other) == inserted_attention(net)


class TestCommand:
    def run(self, path: Any, *arguments: str) -> Any:
        return CliRunner().invoke(app, [str(path), "--configuration", "full", *arguments])

    def file(self, folder: Any, content: Any = None) -> Any:
        path = folder / "nnUNetPlans.json"
        path.write_text(json.dumps(plans() if content is None else content))
        return path

    def test_a_configuration_is_added(self, tmp_path: Any) -> None:
        path = self.file(tmp_path)
        options = ("--options", '{"reduction": 2}', "--stages", "-1", "--identity", "--max-voxels", "100")
        result = self.run(path, "--attention", "cbam", "--at", "skip", "--at", "bottleneck", *options)
        assert result.exit_code == 0, result.output
        assert "full_cbam has attention at skip:decoder.stages.0, bottleneck:encoder.stages.2" in result.output
        content = json.loads(path.read_text())
        new = content["configurations"].pop("full_cbam")
        assert content == plans()
        assert set(new) == {"inherits_from", "architecture"}
        assert new["inherits_from"] == "full"
        assert new["architecture"]["network_class_name"] == NETWORK
        net = build(new["architecture"], False)
        assert f"{sum(p.numel() for p in attention_parameters(net)):,} more parameters" in result.output
        assert not list(tmp_path.glob(".*"))

    def test_a_second_attention_on_the_first(self, tmp_path: Any) -> None:
        path = self.file(tmp_path)
        self.run(path, "--attention", "cbam", "--at", "skip")
        arguments = ["--configuration", "full_cbam", "--attention", "eca", "--at", "encoder", "--name", "both"]
        result = CliRunner().invoke(app, [str(path), *arguments])
        assert result.exit_code == 0, result.output
        net = build(json.loads(path.read_text())["configurations"]["both"]["architecture"], False)
        assert [item["spec"][0] for item in inserted_attention(net)] == ["cbam", "eca"]

    def test_an_inherited_architecture_is_found(self, tmp_path: Any) -> None:
        arguments = [str(self.file(tmp_path)), "--configuration", "low", "--attention", "se", "--at", "encoder"]
        assert CliRunner().invoke(app, arguments).exit_code == 0

    def test_nothing_is_overwritten_without_the_option(self, tmp_path: Any) -> None:
        path = self.file(tmp_path)
        arguments = ("--attention", "cbam", "--at", "skip")
        assert self.run(path, *arguments).exit_code == 0
        before = path.read_text()
        result = self.run(path, *arguments)
        assert result.exit_code == 2
        assert "'full_cbam' is already a configuration of the plans" in result.stderr
        assert path.read_text() == before
        assert self.run(path, "--attention", "cbam", "--at", "encoder", "--overwrite").exit_code == 0
        content = json.loads(path.read_text())["configurations"]
        assert content["full_cbam"]["architecture"]["arch_kwargs"]["attention"][0]["at"] == ["encoder"]
        assert self.run(path, *arguments, "--name", "full", "--overwrite").exit_code == 2

    def test_configurations_that_inherit_from_each_other_are_refused(self) -> None:
        known = {"one": {"inherits_from": "other"}, "other": {"inherits_from": "one"}}
        with pytest.raises(ValueError, match="`configuration` 'one' inherits from itself: one, other, one"):
            resolved(known, "one")

    def test_a_configuration_that_others_inherit_from_is_not_replaced_by_one_of_them(self, tmp_path: Any) -> None:
        path = self.file(tmp_path)
        self.run(path, "--attention", "cbam", "--at", "skip")
        before = path.read_text()
        arguments = ["--attention", "se", "--at", "skip", "--configuration", "full_cbam", "--name", "full"]
        result = CliRunner().invoke(app, [str(path), *arguments, "--overwrite"])
        assert result.exit_code == 2
        assert "`name` 'full' is already a configuration of the plans; use another name" in result.stderr
        assert path.read_text() == before

    def test_a_second_attention_has_the_patch_size_of_the_configuration(self, tmp_path: Any) -> None:
        content = plans()
        add_configuration(content, "full", "first", {"spec": "se", "at": ["skip"]})
        content["configurations"]["first"]["patch_size"] = [4, 8, 8]
        add_configuration(content, "first", "second", {"spec": "eca", "at": ["skip"], "max_voxels": 256})
        arguments = content["configurations"]["second"]["architecture"]["arch_kwargs"]
        assert arguments["patch_size"] == [4, 8, 8]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--attention", "cban", "--at", "skip"), "`attention` must be a registered mechanism, got 'cban'"),
            (("--attention", "cbam", "--at", "skips"), "did you mean 'skip'"),
            (("--attention", "cbam", "--at", "residual"), "must be a kind of site of PlainConvUNet"),
            (("--attention", "cbam", "--at", "skip", "--options", "{"), "`options` must be JSON"),
            (("--attention", "cbam", "--at", "skip", "--options", "[1]"), "`options` must be a JSON object"),
            (("--attention", "cbam", "--at", "skip", "--options", '{"r": 1}'), "has no option `r`"),
            (
                ("--attention", "cbam", "--at", "skip", "--configuration", "3d"),
                "not in the plans, which have full, low",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refusals_are_one_line(self, tmp_path: Any, arguments: tuple[str, ...], says: str) -> None:
        path = self.file(tmp_path)
        before = path.read_text()
        result = self.run(path, *arguments)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert path.read_text() == before
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def test_files_that_are_not_plans(self, tmp_path: Any) -> None:
        arguments = ("--attention", "se", "--at", "skip")
        old = {"configurations": {"full": {"UNet_class_name": "PlainConvUNet"}}}
        foreign = plans()
        foreign["configurations"]["full"]["architecture"]["network_class_name"] = "no.such.Network"
        for content, says in (
            ([1], "must be a JSON object"),
            ({"a": 1}, "has no 'configurations'"),
            (old, "has no 'architecture'"),
            (foreign, "`network` must be importable, got 'no.such.Network'"),
        ):
            result = self.run(self.file(tmp_path, content), *arguments)
            assert result.exit_code == 2
            assert says in result.stderr
        result = self.run(tmp_path / "none.json", *arguments)
        assert result.exit_code == 2
        assert "none.json" in result.stderr


def test_the_page_has_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "nnunet.md").read_text()
    [command] = app.registered_commands
    for name, parameter in inspect.signature(command.callback).parameters.items():
        assert name == "plans" or f"`--{name.replace('_', '-')}`" in page
        assert parameter.default in (inspect.Parameter.empty, None, False, "{}") or f"`{parameter.default}`" in page


def test_the_command_imports_nnunet_only_to_build_a_network() -> None:
    code = """
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("attn3d.adapters.nnunet", run_name="__main__")
except SystemExit:
    sys.exit(any(name in sys.modules for name in ("dynamic_network_architectures", "nnunetv2", "monai")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--max-voxels" in result.stdout
    assert locate(NETWORK) is attn3d.adapters.nnunet.UNetWithAttention


def test_a_checkpoint_without_attention_is_converted(tmp_path: Path) -> None:
    """The new checkpoint has the old weights and all keys of the network with attention, as nnU-Net requires."""
    from attn3d.adapters.nnunet_checkpoint import app as convert

    content = plans(2)
    plain = build(content["configurations"]["full"]["architecture"], False)
    add_configuration(content, "full", "new", {"spec": "attention_gate", "at": ["skip"], "identity": True})
    content["configurations"]["bare"] = {"patch_size": [8, 8]}  # of a version before 2.4
    (tmp_path / "plans.json").write_text(json.dumps(content))
    torch.save({"network_weights": plain.state_dict(), "current_epoch": 7}, tmp_path / "old.pth")
    arguments = [str(tmp_path / name) for name in ("plans.json", "old.pth", "new.pth")]
    result = CliRunner().invoke(convert, [*arguments, "--configuration", "new"])
    assert result.exit_code == 0, result.output
    assert "initial tensors of attention" in result.output
    saved = torch.load(tmp_path / "new.pth", weights_only=False)
    net = build(content["configurations"]["new"]["architecture"], False)
    net.load_state_dict(saved["network_weights"])
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert saved["current_epoch"] == 7

    written = (tmp_path / "new.pth").read_bytes()
    for name, content, configuration, says in (
        ("old.pth", b"no checkpoint", "new", "`checkpoint` {file} is damaged or not a file of PyTorch: "),
        ("old.pth", (tmp_path / "old.pth").read_bytes()[:999], "new", "`checkpoint` {file} is damaged or not a"),
        ("old.pth", b"\x80\x02cno_such_module\nX\n.", "new", "`checkpoint` {file} is damaged or not a file of "),
        ("old.pth", pickle.dumps({}), "new", "`checkpoint` {file} is damaged"),
        ("old.pth", None, "new", "`checkpoint` {file} cannot be read: No such file or directory"),
        ("old.pth", {"weights": {}}, "new", "`checkpoint` {file} is not a checkpoint of nnU-Net v2; it has no 'netw"),
        ("old.pth", {"network_weights": {}}, "new", "must contain a U-Net of nnU-Net; it has no 'decoder.seg_"),
        ("old.pth", {"network_weights": plain.state_dict()}, "full", "`configuration` 'full' has no attention"),
        ("old.pth", {"network_weights": plain.state_dict()}, "bare", "`configuration` 'bare' has no attention"),
        ("old.pth", {"network_weights": plain.state_dict()}, "none", "'none' is not in the plans"),
        ("plans.json", None, "new", "`plans` {file} cannot be read: No such file or directory"),
        ("plans.json", b"\xff", "new", "`plans` {file} cannot be read: 'utf-8' codec"),
    ):
        file = tmp_path / name
        file.unlink(missing_ok=True)
        if isinstance(content, dict):
            torch.save(content, file)
        elif content is not None:
            file.write_bytes(content)
        result = CliRunner().invoke(convert, [*arguments, "--configuration", configuration])
        assert result.exit_code == 2
        assert says.format(file=file) in result.stderr
        assert result.stderr.startswith("nnunet: ")
        assert len(result.stderr.splitlines()) == 1
        assert (tmp_path / "new.pth").read_bytes() == written


def test_a_converted_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    from attn3d.adapters.nnunet_checkpoint import app as convert

    content = plans(2)
    add_configuration(content, "full", "new", {"spec": "se", "at": ["skip"]})
    (tmp_path / "plans.json").write_text(json.dumps(content))
    weights = build(content["configurations"]["full"]["architecture"], False).state_dict()
    torch.save({"network_weights": weights}, tmp_path / "old.pth")
    arguments = [str(tmp_path / name) for name in ("plans.json", "old.pth")]

    def full(path: Path, content: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    result = CliRunner().invoke(convert, [*arguments, str(tmp_path / "none" / "new.pth"), "--configuration", "new"])
    assert result.exit_code == 2
    assert f"`out` {tmp_path / 'none' / 'new.pth'} cannot be written: there is no folder" in result.stderr
    monkeypatch.setattr(Path, "write_bytes", full)
    result = CliRunner().invoke(convert, [*arguments, str(tmp_path / "new.pth"), "--configuration", "new"])
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"plans.json", "old.pth"}


class OwnNetwork(nn.Sequential):
    """A network without its own initialisation."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool) -> None:
        super().__init__(nn.Conv2d(input_channels, 4, 3, padding=1), nn.Conv2d(4, num_classes, 1))


def test_a_network_without_initialisation_keeps_its_weights() -> None:
    arguments = {"patch_size": [8, 8], "deep_supervision": False, "network": f"{__name__}.OwnNetwork"}
    torch.manual_seed(0)
    net = UNetWithAttention(2, 3, attention=[{"spec": "se", "at": "path:0"}], **arguments)
    torch.manual_seed(0)
    plain = OwnNetwork(2, 3, False)
    assert type(net) is OwnNetwork
    assert torch.equal(net[0].weight, plain[0].weight)
    assert [site for call in inserted_attention(net) for site in call["at"]] == ["path:0"]
    assert not hasattr(net, "initialize")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_conversion_is_a_command_too(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["nnunet_checkpoint", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("attn3d.adapters.nnunet_checkpoint", run_name="__main__")
    assert stopped.value.code == 0
    assert "--configuration" in capsys.readouterr().out
