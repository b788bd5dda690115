"""Parts of a module that backward recomputes."""

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from attn3d.layers.norms import create_norm
from attn3d.layers.recomputed import recomputed


class Hidden(nn.Module):
    """A hidden map of several channels between input and output, with a norm that counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 2, 1), create_norm("batch", 6)

    def plain(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.norm(self.inner(x))))

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(Hidden.plain, self, x)


@pytest.fixture
def module() -> Hidden:
    torch.manual_seed(0)
    return Hidden().double()


def image(voxels: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 2, voxels, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
def test_first_and_second_derivatives_are_those_of_the_plain_form(module: Hidden, train: bool) -> None:
    wanted, results = [x := image(), *module.train(train).parameters()], []
    for function in (module.plain, module):
        y = function(x)
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), wanted)
        results.append([y, *first, *second])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_forward_pass_counts_once(module: Hidden, momentum: float | None) -> None:
    module.norm.momentum = momentum
    x, y = image(), image() * 2
    outputs = [module(x), module(y)]  # two forward passes before one backward
    counted = {name: buffer.clone() for name, buffer in module.named_buffers()}
    buffers = dict(module.named_buffers())
    assert counted["norm.num_batches_tracked"] == 2
    (outputs[0].sum() + outputs[1].sum()).backward()
    for name, buffer in module.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, counted[name])


def test_only_the_inputs_are_saved_for_backward(module: Hidden) -> None:
    x = image(4096)
    left = {}
    for name, function in {"plain": module.plain, "ours": module}.items():
        function(x)  # the first call makes lasting allocations
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            y = function(x)
        events = profiler.profiler.kineto_results.events()
        left[name] = sum(event.nbytes() for event in events if event.name() == "[memory]") / y.nbytes
    assert left["plain"] > 6
    assert left["ours"] < 1.1  # the output


def test_functional_gradients(module: Hidden) -> None:
    """`torch.func` does not support hooks on saved tensors."""
    x, parameters = image().detach(), dict(module.eval().named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(module.plain(x).square().sum(), list(module.parameters()))
    torch.testing.assert_close(list(gradients.values()), list(expected))


def test_autocast_is_that_of_the_forward_pass() -> None:
    module, x = Hidden(), image().detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = module.plain(x), module(x)
    assert ours.dtype == torch.bfloat16
    found = [torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()]) for y in (plain, ours)]
    torch.testing.assert_close(found[1], found[0])


def test_backward_uses_the_parameters_of_its_forward(module: Hidden) -> None:
    x = image().detach()
    other = {name: torch.randn_like(parameter).requires_grad_() for name, parameter in module.named_parameters()}
    y = torch.func.functional_call(module, other, (x,))
    found = torch.autograd.grad(y.square().sum(), list(other.values()))
    module.load_state_dict(other, strict=False)
    expected = torch.autograd.grad(module.plain(x).square().sum(), list(module.parameters()))
    torch.testing.assert_close(found, expected)


def test_backward_uses_the_mode_of_its_forward(module: Hidden) -> None:
    x = image()
    y = module(x)
    (expected,) = torch.autograd.grad(module.plain(x).square().sum(), x)
    module.eval()
    (found,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_parametrized_layers(module: Hidden) -> None:
    nn.utils.parametrizations.weight_norm(module.inner)
    found, expected = (
        torch.autograd.grad(function(image()).square().sum(), list(module.parameters()))
        for function in (module, module.plain)
    )
    torch.testing.assert_close(found, expected)
