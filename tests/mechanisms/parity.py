"""Compares a mechanism with its reference: the output, and the gradients of the input and all parameters."""

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
    """Compares every entry; the tolerance is relative to the largest absolute value."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def assert_gradients_close(
    outputs: Tensor,
    inputs: Sequence[Tensor],
    expected_outputs: Tensor,
    expected_inputs: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Compares the gradient of every input, for a random output gradient, to 1e-9 of its largest absolute value.

    Some gradients are zero except for rounding errors (a bias before a norm, the bias of the keys under a softmax).
    So the scale of a gradient is at least a thousandth of the largest gradient of all inputs.
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
    """Compares output and gradients with the reference, which gets copies of the parameters and statistics."""
    statistics = [(average.clone(), variance.clone()) for average, variance in running_statistics(module)]
    copies = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    x_copy, x = (x.detach().requires_grad_() for _ in range(2))

    expected = reference(x_copy, copies, statistics, module.training, **options)
    output = module(x)
    assert_close(output, expected)
    inputs, expected_inputs = [x, *module.parameters()], [x_copy, *copies]
    assert_gradients_close(output, inputs, expected, expected_inputs, names_of_inputs(module))
