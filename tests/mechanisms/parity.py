"""A mechanism held to its reference: the output and the gradients of the input and of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.configurations import running_statistics


def volume(*shape: int, seed: int = 1) -> Tensor:
    """Random values in float64, the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(torch.get_default_device())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Holds every entry to `tolerance` of the largest absolute value."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def assert_gradients_close(
    outputs: Tensor,
    inputs: Sequence[Tensor],
    expected_outputs: Tensor,
    expected_inputs: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Holds the gradient of every input to 1e-9 of its largest absolute value, from a random gradient above.

    A gradient that the mathematics cancels (a bias before a norm, the bias of the keys under a softmax) is
    rounding error in both: no scale is taken below a thousandth of the largest gradient of all.
    """
    upstream = volume(*outputs.shape, seed=2)
    gradients = torch.autograd.grad(outputs, inputs, upstream)
    expected = torch.autograd.grad(expected_outputs, expected_inputs, upstream)
    largest = max(gradient.abs().max().item() for gradient in expected)
    for gradient, reference, name in zip(gradients, expected, names, strict=True):
        scale = max(reference.abs().max().item(), 1e-3 * largest)
        torch.testing.assert_close(
            gradient,
            reference.view_as(gradient),
            rtol=0,
            atol=1e-9 * scale,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )


def names_of_inputs(module: nn.Module) -> list[str]:
    """The input and every parameter, in the order of the lists below."""
    return ["x", *(name for name, _ in module.named_parameters())]


def assert_close_to_reference(module: nn.Module, reference: Callable[..., Tensor], x: Tensor, options: dict) -> None:
    """Holds output and gradients to those of the loops, run on copies of the parameters and statistics."""
    statistics = [(average.clone(), variance.clone()) for average, variance in running_statistics(module)]
    copies = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    x_copy, x = (x.detach().requires_grad_() for _ in range(2))

    expected = reference(x_copy, copies, statistics, module.training, **options)
    output = module(x)
    assert_close(output, expected)
    inputs, expected_inputs = [x, *module.parameters()], [x_copy, *copies]
    assert_gradients_close(output, inputs, expected, expected_inputs, names_of_inputs(module))
