"""Tools that a network with attention must support: captures, checkpoints, processes, conversion of norms."""

import copy
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet, DynUNet, ResNet, SegResNet, SegResNetDS, UNet
from torch import Tensor, nn

from attn3d.insertion import attention_parameters, insert_attention, remove_attention
from attn3d.networks.registry import run
from tests.configurations import FORMS, OF_ONE_MAP, of_form
from tests.marks import some
from tests.networks.every_way import AT, EveryWay, maps
from tests.networks.recomputed import Recomputed, recompute
from tests.networks.zoo import CONFIGURATIONS


def every_way(dims: int = 2, name: str = "cbam", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = insert_attention(EveryWay(dims).eval(), name, at=AT, **options)
    return insert_attention(net, "sk", at="conv")


def sums(dims: int = 2) -> nn.Module:
    torch.manual_seed(0)
    net = SegResNet(dims, 8, blocks_down=(1, 1), blocks_up=(1,)).eval()
    return insert_attention(net, "se", at=("encoder", "skip", "residual"))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "every way": every_way,
    "sums": sums,
    "UNet": lambda: insert_attention(UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1), "eca", at=("encoder", "skip")),
    "BasicUNet": lambda: insert_attention(
        BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4), norm="batch"), "coord", at=("decoder", "skip")
    ),
    "DynUNet": lambda: insert_attention(
        DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], res_block=True), "bam", at=("residual", "skip")
    ),
    "SegResNetDS": lambda: insert_attention(SegResNetDS(2, 4, blocks_down=(1, 1)), "gc", at=("decoder", "skip")),
}
pytestmark = pytest.mark.scorecard("insertion")

SCRIPTING = [name for name in NETWORKS if name not in ("sums", "SegResNetDS")]  # TorchScript has no function modes


def image(name: str, batch: int = 2, size: int = 16) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 1, *[size] * (3 if name in ("UNet", "DynUNet") else 2))


@pytest.mark.parametrize("name", SCRIPTING)
def test_script(name: str) -> None:
    net, x = NETWORKS[name]().eval(), image(name)
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(x), net(x))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), net(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_trace(name: str) -> None:
    net, x = NETWORKS[name]().eval(), image(name)
    traced = torch.jit.trace(net, x)
    other = image(name, batch=1) * 2
    torch.testing.assert_close(traced(other), net(other))


@pytest.mark.parametrize("name", some(["every way", "sums"], lambda name: name == "sums"))
def test_compile(name: str) -> None:
    """No graph breaks, in forward and backward."""
    net, x = NETWORKS[name]().train(), image(name)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(x).square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in attention_parameters(net)]
    net.zero_grad()
    net(x).square().mean().backward()
    for gradient, parameter in zip(gradients, attention_parameters(net), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", some(["every way", "sums"], lambda name: name != "sums"))
def test_export_and_onnx(name: str) -> None:
    """With dynamic batch and space: the exported program and its ONNX model run on another shape."""
    net, x, other = NETWORKS[name]().eval(), image(name), image(name, batch=3, size=24)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(net, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    torch.testing.assert_close(program.module()(other), net(other), rtol=1e-4, atol=1e-4)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
    [output] = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    np.testing.assert_allclose(output, net(other).detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["every way", "sums"])
def test_activation_checkpointing(name: str) -> None:
    """Checkpointing of the whole network and of its stages gives the same gradients."""
    net, x = NETWORKS[name]().train(), image(name)
    net(x).square().mean().backward()
    expected = {key: parameter.grad.clone() for key, parameter in net.named_parameters()}
    stages = [net.down_layers[0], net.down_layers[1]] if name == "sums" else [net.stem, net.merge]
    for whole in (True, False):
        net.zero_grad()
        if not whole:
            recompute(*stages)
        (Recomputed(net) if whole else net)(x).square().mean().backward()
        for key, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[key])


def test_autocast_and_metatensor_and_sliding_windows() -> None:
    net, x = every_way().eval(), image("every way")
    with torch.no_grad():
        expected, without = net(x), remove_attention(copy.deepcopy(net))(x)
        with torch.autocast("cpu", torch.bfloat16):
            error = (net(x).float() - expected).abs().max()
    assert error < 0.2 * (without - expected).abs().max()
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    output = net(MetaTensor(x, affine=affine))
    assert isinstance(output, MetaTensor)
    assert torch.equal(output.affine, affine.double())
    torch.testing.assert_close(output.as_tensor(), net(x))
    assert sliding_window_inference(x, (8, 8), 2, net).shape == net(x).shape


@pytest.mark.parametrize(("name", "variant"), [form for form in FORMS if form[0] in OF_ONE_MAP])
def test_every_mechanism_at_every_way(name: str, variant: str) -> None:
    """In 3-D, the output is finite and every parameter has a gradient."""
    net, x = every_way(3, name, **of_form(name, variant)).train(), torch.randn(2, 1, 4, 6, 8)
    net(x).square().mean().backward()
    assert net(x).isfinite().all()
    assert all(parameter.grad is not None for parameter in attention_parameters(net))


def of_the_zoo() -> list[tuple[nn.Module, Tensor]]:
    """One configuration of each network that can be pickled, with CBAM at one stage of every kind."""
    made = []
    for each in CONFIGURATIONS:
        if each.pickles and not each.heavy and each.dims == (3 if each.name == "VISTA3D" else 2):
            net, x = each.make().eval(), each.image(2)
            for kind in each.kinds.split():
                insert_attention(net, "sk" if kind == "conv" else "cbam", at=kind, stages=-1, input_shape=x.shape)
            made.append((net, x))
    return made


def of_every_mechanism() -> list[tuple[nn.Module, Tensor]]:
    return [(every_way(2, name, **of_form(name, "paper")), image("every way")) for name in OF_ONE_MAP]


def of_every_way() -> list[tuple[nn.Module, Tensor]]:
    return [(NETWORKS[name]().eval(), image(name)) for name in ("every way", "sums")]


@pytest.mark.nightly
@pytest.mark.parametrize("make", [of_every_way, of_the_zoo, of_every_mechanism])
def test_fresh_processes(make: Callable[[], list[tuple[nn.Module, Tensor]]], tmp_path: pathlib.Path) -> None:
    """Two other processes load whole saved networks, add hooks, and train them together with gloo."""
    with torch.no_grad():
        torch.save([(net, x, maps(run(net, x))) for net, x in make()], tmp_path / "networks.pt")
    command = [sys.executable, "-m", "tests.networks.worker", str(tmp_path)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [
        subprocess.Popen([*command, str(rank)], env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams)
        for rank in (0, 1)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=600)
        assert worker.returncode == 0, output


@pytest.mark.parametrize("name", ["UNet", "ResNet"])
def test_synchronised_batch_norm(name: str) -> None:
    """Conversion keeps attention at other layers. For attention on a batch norm, convert first."""
    torch.manual_seed(0)
    make = {
        "UNet": lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch"),
        "ResNet": lambda: ResNet("basic", [1] * 4, [4] * 4, 2, 1, num_classes=2),
    }[name]
    net, x = make().eval(), torch.randn(2, 1, 32, 32)
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    at = ("encoder", "block") if name == "ResNet" else AT[:4]
    net = insert_attention(net, "bam", at=at)
    expected = net(x)
    assert torch.equal(convert(net)(x), expected)

    plain = convert(make()).eval()
    before = plain(x)
    assert not torch.equal(insert_attention(plain, "se", at="residual")(x), before)


@pytest.mark.parametrize("name", ["sums", "SegResNetDS"])
def test_sums_are_not_scripted(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be scripted.*use torch.jit.trace, torch.compile or torch.export"):
        torch.jit.script(NETWORKS[name]())
    torch.jit.script(insert_attention(SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)), "se", at="encoder"))
