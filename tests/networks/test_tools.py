"""Tools of PyTorch on a network with attention."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import AttentionUnet, DenseNet, FlexibleUNet, HighResNet, SegResNet, UNet
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, update_bn

import attn3d
from attn3d.insertion import (
    attention_parameters,
    attention_sites,
    insert_attention,
    inserted_attention,
    load_pretrained,
    remove_attention,
)
from attn3d.mechanisms.base import Mechanism
from tests.configurations import OF_ONE_MAP, create
from tests.networks.comparing import randomise
from tests.networks.every_way import AT, EveryWay


def net(name: str = "cbam", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return insert_attention(EveryWay(2).eval(), name, at=AT, **options)


def image(batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 1, 8, 8)


class Leaves(torch.fx.Tracer):
    """Traces a mechanism as a leaf module."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, Mechanism) or super().is_leaf_module(module, path)


@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_fx_needs_mechanisms_as_leaf_modules(name: str) -> None:
    module, x = create(name, spatial_dims=2, channels=8).eval(), torch.randn(2, 8, 5, 6)
    with pytest.raises(TypeError, match=r"torch\.fx cannot trace \w+, which uses sizes: .*is_leaf_module"):
        torch.fx.symbolic_trace(module)
    host = nn.Sequential(nn.Conv2d(8, 8, 1), module)
    traced = torch.fx.GraphModule(host, Leaves().trace(host))
    torch.testing.assert_close(traced(x), host(x))


def test_fx_refuses_skips_that_are_added_inline() -> None:
    host = insert_attention(SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)), "se", at="skip")
    with pytest.raises(TypeError, match=r"torch\.fx cannot trace attention on skips .* torch\.export"):
        torch.fx.symbolic_trace(host)


def test_a_strict_export_refuses_skips_that_are_added_inline() -> None:
    """It would leave them without attention. The default export is right."""
    host = insert_attention(SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)), "se", at="skip").eval()
    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(Exception, match="cannot be exported with `strict=True`; use the default `strict=False`"):
        torch.export.export(host, (x,), strict=True)
    torch.testing.assert_close(torch.export.export(host, (x,)).module()(x), host(x))


def test_averaged_weights_and_their_batch_norms() -> None:
    host = net("bam")
    averaged = AveragedModel(host)
    norms = [module for module in averaged.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    before = [norm.running_mean.clone() for norm in norms]
    update_bn([image(), image() * 2], averaged)
    assert norms
    assert all(norm.num_batches_tracked == 2 for norm in norms)
    assert not any(torch.equal(mean, norm.running_mean) for mean, norm in zip(before, norms, strict=True))


def test_pruning_has_an_effect() -> None:
    host, x = net("se", reduction=1), image()
    [first, *_] = [module for module in host.modules() if isinstance(module, attn3d.SqueezeExcitation)]
    before = host(x)
    prune.l1_unstructured(first.excite, "weight", amount=0.9)
    assert not torch.equal(host(x), before)
    assert (first.excite.weight == 0).sum() == round(0.9 * first.excite.weight.numel())


class LowRank(nn.Module):
    """W + B A."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(1, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


@pytest.mark.parametrize("name", ["se", "mhsa"])
def test_low_rank_adapters_have_an_effect_and_are_trained(name: str) -> None:
    host, x = net(name), image()
    before = host(x)
    linears = [module for module in host.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight))
    torch.testing.assert_close(host(x), before)
    host(x).square().mean().backward()
    assert any(linear.parametrizations.weight[0].b.grad.abs().sum() > 0 for linear in linears)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["se", "gc"])
def test_dynamic_quantisation(name: str) -> None:
    """The error is small beside the effect of the attention."""
    host, x = net(name, reduction=1), image()
    randomise(host)
    quantised = torch.ao.quantization.quantize_dynamic(host, {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantised.modules())
    error, effect = (
        (one(x) - host(x)).abs().max().item() for one in (quantised, remove_attention(copy.deepcopy(host)))
    )
    assert error < 0.2 * effect


@pytest.mark.parametrize("name", ["cbam", "triplet", "mhsa", "non_local", "channel", "danet", "paired"])
def test_functional_gradients_and_windows_by_vmap(name: str) -> None:
    host, x = net(name), image(3)
    parameters = dict(host.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(host, parameters, (x,)).square().mean()

    gradients = torch.func.grad(loss)(parameters, x)
    host(x).square().mean().backward()
    for name, parameter in host.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    windows = torch.vmap(lambda window: host(window[None])[0])(x)
    torch.testing.assert_close(windows, host(x))
    assert attention_parameters(host)


WRAPPERS = pytest.mark.parametrize("wrap", [functools.partial(torch.compile, backend="eager"), checkpoint_wrapper])


def wrapped(net: nn.Module, parts: list[str], wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for path in parts:
        front, _, name = path.rpartition(".")
        setattr(net.get_submodule(front), name, wrap(net.get_submodule(path)))
    return net


@WRAPPERS
@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1), ["model.0", "model.1.submodule.1", "model.1"]),
        (lambda: AttentionUnet(2, 1, 2, (4, 8, 8), (2, 2)), ["model.1.submodule.0", "model.1.submodule"]),
        (lambda: SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,)), ["down_layers.0", "up_layers.0.0"]),
    ],
)
def test_attention_in_stages_that_are_compiled_or_checkpointed(
    build: Callable[[], nn.Module], parts: list[str], wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Names of sites, and keys that are new, are those of the network without wrappers."""
    plain, net, x = build().eval(), wrapped(build().eval(), parts, wrap), image()
    state = plain.state_dict()
    assert attention_sites(net, (1, 1, 8, 8)) == attention_sites(plain, (1, 1, 8, 8))
    insert_attention(net, "bam", at=("encoder", "decoder", "bottleneck", "skip", "block"), stages=(0, -1))
    (item,) = inserted_attention(net)
    insert_attention(plain, **item)
    assert len(load_pretrained(net, state)) == len(load_pretrained(plain, state)) > 0
    randomise(plain)
    assert not load_pretrained(net, plain.state_dict())
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(net(x), plain(x))
    assert attn3d.attention_maps(net, x).keys() == attn3d.attention_maps(plain, x).keys()
    assert not any("attn3d" in key for key in remove_attention(net).state_dict())


@WRAPPERS
@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: FlexibleUNet(1, 2, "resnet10", spatial_dims=2, decoder_channels=(4, 4, 4, 4, 4)), "encoder"),
        (lambda: DenseNet(2, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1)), "features"),
        (lambda: HighResNet(2, 1, 2, layer_params=[{"name": "a", "n_features": 4, "kernel_size": 3}] * 3), "blocks"),
    ],
)
def test_sites_of_a_part_that_is_compiled_or_checkpointed(
    build: Callable[[], nn.Module], part: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    net = build().to("meta")
    expected = attention_sites(net, (1, 1, 32, 32))
    assert attention_sites(wrapped(net, [part], wrap), (1, 1, 32, 32)) == expected


def test_hooks_of_the_user_on_a_checkpointed_stage_do_not_run_in_the_probe() -> None:
    seen: list[Tensor] = []
    net = wrapped(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)), ["0"], checkpoint_wrapper)
    net[0].register_forward_hook(lambda module, given, output: seen.append(output))
    assert attention_sites(net, (1, 1, 6, 5))
    assert not seen
