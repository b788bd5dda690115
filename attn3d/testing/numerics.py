"""Conditions on values: dtypes, ranges, independent samples and repeatable evaluation."""

import copy

import torch
from torch import Tensor, nn

from attn3d.testing.subject import (
    Subject,
    expect,
    expect_close,
    expect_equal,
    expect_finite,
    gradients_of,
)

_HALVES = (torch.float16, torch.bfloat16)
# The relative error, in the L2 norm, that a chain of some ten operations in the dtype may have.
_PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def dtypes(subject: Subject) -> None:
    """Output and gradients have the dtype of the input and the parameters, for double, single and both half dtypes."""
    for dtype in _PRECISION:
        module = subject.copy(dtype)
        x = subject.input(dtype=dtype, requires_grad=True)
        y = module(x)
        expect(y.dtype == dtype, f"an output in {dtype}", y.dtype)
        for gradient in gradients_of(module, x, y):
            if gradient is not None:
                expect(gradient.dtype == dtype, f"gradients in {dtype}", gradient.dtype)


def precision(subject: Subject) -> None:
    """In single and half precision the output is close to that in double precision."""
    for dtype, tolerance in _PRECISION.items():
        module = subject.copy(dtype)
        x = subject.input(dtype=dtype)
        truth = _in_double(module, x)
        error, size = float((module(x).detach().double() - truth).norm()), float(truth.norm())
        found = f"an error of {error:.1e} on an output of {size:.1e}"
        expect(error <= tolerance * size, f"a relative error of at most {tolerance:.0e} in {dtype}", found)


def large_values(subject: Subject) -> None:
    """In half precision large inputs give a finite output if the output in double precision fits the dtype."""
    for dtype in _HALVES:
        module = subject.copy(dtype)
        for scale in (10.0, 100.0, 1000.0):
            x = subject.input(dtype=dtype) * scale
            if _fits(_in_double(module, x), dtype):
                expect_finite(module(x), f"the output in {dtype} for inputs about {scale:g}")


def autocast(subject: Subject) -> None:
    """Under autocast output and gradients are finite if the output in double precision fits the dtype."""
    for dtype in _HALVES:
        module = subject.copy(torch.float32)
        for scale in (1.0, 100.0, 1000.0):
            x = (subject.input(dtype=torch.float32) * scale).requires_grad_()
            if not _fits(_in_double(module, x.detach()), dtype):
                continue
            with torch.autocast(subject.device.type, dtype):
                y = module(x)
            expect_finite(y, f"the output under autocast to {dtype} for inputs about {scale:g}")
            if scale == 1.0:
                for gradient in gradients_of(module, x, y):
                    if gradient is not None:
                        expect(gradient.dtype == x.dtype, f"gradients in {x.dtype}", gradient.dtype)
                        expect_finite(gradient, f"the gradients under autocast to {dtype}")


def plain_content(subject: Subject) -> None:
    """Zero, constant and one-hot volumes give a finite output and finite gradients."""
    zero = torch.zeros_like(subject.input(dtype=torch.float32))
    one_hot = zero.clone()
    one_hot[0].view(-1)[-1] = 1.0
    for training in (False, True):
        for what, x in {"a zero": zero, "a constant": zero - 3.0, "a one-hot": one_hot}.items():
            module = subject.copy(torch.float32, training=training)
            x = x.clone().requires_grad_()
            y = module(x)
            expect_finite(y, f"the output for {what} volume")
            for gradient in gradients_of(module, x, y):
                expect_finite(gradient, f"the gradients for {what} volume")


def independent_samples(subject: Subject) -> None:
    """In evaluation the output of a batch is that of its samples, also if a size equals C or the batch size."""
    module = subject.copy()
    channels = subject.channels
    for size in [(4, 5, 3), (channels, 3, 2), (2, 3, channels), (2, 2, 2)]:
        x = subject.input(size)
        alone = torch.cat([module(sample) for sample in x.split(1)])
        expect_close(module(x), alone, f"a batch of shape {tuple(x.shape)} to give the outputs of its single samples")


def evaluation_repeats(subject: Subject) -> None:
    """In evaluation, with dropout set to 0.5, a second run is bitwise equal to the first and no buffer changes.

    The random generator keeps its state.
    """
    module = subject.copy(torch.float32, dropout=0.5)
    x = subject.input(dtype=torch.float32)
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    y = module(x)
    kept = torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    expect_equal(module(x), y, "a second run to repeat the first")
    expect(kept, "the random generator to keep its state", "another state")
    after = module.state_dict()
    expect(after.keys() == before.keys(), "no new state", ", ".join(after.keys() ^ before.keys()))
    for name, value in after.items():
        expect_equal(value, before[name], f"{name} to stay as it was")


def _in_double(module: nn.Module, x: Tensor) -> Tensor:
    """Returns the output of ``module`` in double precision, with its parameters rounded to their dtype."""
    return copy.deepcopy(module).double()(x.double()).detach()


def _fits(truth: Tensor, dtype: torch.dtype) -> bool:
    """Returns whether ``dtype`` can hold these values, with a margin for partial sums."""
    return float(truth.abs().max()) < torch.finfo(dtype).max / 4
