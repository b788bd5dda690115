"""Scripts, exports and other captures of every network and mechanism, if the plain network supports them."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn3d.insertion import insert_attention
from tests.configurations import FORMS, OF_ONE_MAP, OF_TOKENS, of_form
from tests.networks.combinations import UNSCRIPTED
from tests.networks.comparing import randomise
from tests.networks.every_way import AT, EveryWay, maps
from tests.networks.zoo import CONFIGURATIONS, Configuration

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

# The cheaper of the two configurations of each network.
NETWORKS = [each for each in CONFIGURATIONS if not each.heavy and each.dims == (3 if each.name == "VISTA3D" else 2)]


class Called(nn.Module):
    """Calls a network in the way of its configuration."""

    def __init__(self, configuration: Configuration, net: nn.Module) -> None:
        super().__init__()
        self.net, self.call = net, configuration.call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.net, x)


def plain(configuration: Configuration) -> nn.Module:
    return configuration.make().eval()


def attended(configuration: Configuration, without: tuple[str, ...] = ()) -> nn.Module:
    """Inserts CBAM at the last stage of every kind, and a selective kernel beside the last convolution."""
    net, shape = plain(configuration), configuration.image().shape
    kinds = [kind for kind in configuration.kinds.split() if kind not in without]
    for kind in kinds:
        insert_attention(net, "sk" if kind == "conv" else "cbam", at=kind, stages=-1, input_shape=shape)
    randomise(net)
    return net


def same(found: Any, expected: Any) -> None:
    for one, other in zip(maps(found), maps(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def skip_unless_plain_works(capture: Callable[[nn.Module, Tensor], None], configuration: Configuration) -> None:
    try:
        capture(Called(configuration, plain(configuration)), configuration.image(2))
    except Exception as error:  # networks of other libraries raise any exception
        reason = str(error).strip().partition("\n")[0][:120]
        pytest.skip(f"the plain {configuration.name} is not captured: {type(error).__name__}: {reason}")


def scripted(net: nn.Module, x: Tensor) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    same(torch.jit.load(buffer)(x), net(x))


def traced(net: nn.Module, x: Tensor) -> None:
    same(torch.jit.trace(net, x, check_trace=False)(x * 2), net(x * 2))


def compiled(net: nn.Module, x: Tensor) -> None:
    torch.compiler.reset()
    with torch.no_grad():
        same(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def exported(net: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """With all axes dynamic except the channels; runs on another batch size."""
    auto = torch.export.Dim.AUTO
    axes = {0: auto} | dict.fromkeys(range(2, x.dim()), auto)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=(axes,))
        other = torch.cat([x, x[:1] * 2])
        same(program.module()(other), net(other))
    return program


def exported_in_space(net: nn.Module, x: Tensor) -> None:
    other = torch.randn(1, x.shape[1], *[size * 2 for size in x.shape[2:]])
    with torch.no_grad():
        same(exported(net, x).module()(other), net(other))


def in_onnx(net: nn.Module, x: Tensor) -> None:
    onnx = torch.onnx.export(exported(net, x), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for found, expected in zip(outputs, maps(net(x)), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-2, atol=1e-3)


def in_half_precision(net: nn.Module, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert all(output.isfinite().all() for output in maps(net(x)))


def on_meta_tensors(net: nn.Module, x: Tensor) -> None:
    affine = torch.diag(torch.tensor([2.0] * 3 + [1.0]))
    outputs = maps(net(MetaTensor(x, affine=affine)))
    assert all(isinstance(output, MetaTensor) for output in outputs)
    assert all(torch.equal(output.affine, affine.double()) for output in outputs)
    same([output.as_tensor() for output in outputs], net(x))


def in_sliding_windows(net: nn.Module, x: Tensor) -> None:
    wide = torch.cat([x, x.flip(2)], 2)
    with torch.no_grad():
        found = maps(sliding_window_inference(wide, x.shape[2:], 2, net, overlap=0))
        same([output.narrow(2, 0, output.shape[2] // 2) for output in found], net(x))


def recomputed(net: nn.Module, x: Tensor) -> None:
    """Gradients with checkpointing equal those without."""
    gradients = []
    for outputs in (net(x), checkpoint(net, x, use_reentrant=False)):
        net.zero_grad()
        sum(output.square().mean() for output in maps(outputs)).backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    same(*gradients)


IN_USE = [in_half_precision, on_meta_tensors, in_sliding_windows, recomputed]


@pytest.mark.parametrize("configuration", NETWORKS, ids=lambda each: each.id)
def test_script_of_a_network(configuration: Configuration) -> None:
    x = configuration.image(2)
    try:
        scripted(plain(configuration), x)
    except Exception as error:  # networks of other libraries raise any exception
        pytest.skip(f"the plain {configuration.name} is not scripted: {str(error).strip().splitlines()[0][:120]}")
    refused = tuple(kind for name, kind in UNSCRIPTED if name == configuration.name)
    for kind in refused:
        net = insert_attention(plain(configuration), "se", at=kind, input_shape=x.shape)
        with pytest.raises((ValueError, RuntimeError), match=r"cannot be scripted|Tuple\[\(\)\]"):
            torch.jit.script(net)
    scripted(attended(configuration, refused), x)


@pytest.mark.parametrize("configuration", NETWORKS, ids=lambda each: each.id)
@pytest.mark.parametrize("capture", [*IN_USE, traced, compiled, exported_in_space, in_onnx])
def test_a_network(configuration: Configuration, capture: Callable[[nn.Module, Tensor], None]) -> None:
    skip_unless_plain_works(capture, configuration)
    capture(Called(configuration, attended(configuration)), configuration.image(2))


@pytest.mark.parametrize(("name", "variant"), [form for form in FORMS if form[0] in OF_ONE_MAP])
@pytest.mark.parametrize("capture", [*IN_USE, scripted, traced, compiled, exported_in_space, in_onnx])
def test_a_mechanism(name: str, variant: str, capture: Callable[[nn.Module, Tensor], None]) -> None:
    torch.manual_seed(0)
    net = insert_attention(EveryWay(2).eval(), name, at=AT, **of_form(name, variant))
    randomise(net)
    if capture is scripted and name in OF_TOKENS:
        with pytest.raises(TypeError, match=r"does not support TorchScript.* use `torch\.jit\.trace`"):
            scripted(net, torch.randn(2, 1, 8, 8))
    else:
        capture(net, torch.randn(2, 1, 8, 8))
