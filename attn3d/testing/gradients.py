"""Conditions on gradients: present, correct and deterministic."""

import re
from typing import Any

import torch
from torch import nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attn3d.testing.subject import (
    SIZE,
    Subject,
    Violation,
    expect,
    expect_close,
    expect_finite,
    expect_same_gradients,
    gradients_of,
)

# Operators without a deterministic form on CUDA, from the list of `torch.use_deterministic_algorithms`, and adaptive
# max pooling, which is missing from that list. `cumsum` is on the list but allowed: its sums differ only by rounding.
_NONDETERMINISTIC = re.compile(
    r"_?(adaptive_(avg|max)_pool\dd|avg_pool3d|fractional_max_pool\dd|upsample_.*(linear|cubic)\w*"
    r"|reflection_pad\dd|grid_sampler_\dd)_backward\w*|max_unpool\w*|put_?|median|histc|bincount"
)


def parameter_gradients(subject: Subject) -> None:
    """In training and in evaluation every parameter that requires a gradient gets one, and it is finite."""
    for training in (False, True):
        module = subject.copy(training=training)
        found = gradients_of(module, subject.input())
        for name, gradient in zip(_trained(module), found, strict=True):
            if gradient is None:
                raise Violation(f"a gradient for {name}", "None: the output does not depend on it")
            expect_finite(gradient, f"the gradient of {name}")


def nonzero_gradients(subject: Subject) -> None:
    """With random parameters no gradient is zero, except those in `zero_gradient`, which do not affect the output.

    Checked in evaluation, where a batch norm does not cancel the bias before it. A hidden unit may be dead by chance,
    so a parameter passes if it has a gradient for one of several random draws.
    """
    missing = set(_trained(subject.copy()))
    for seed in range(16):
        module = subject.copy(seed=seed)
        sizes = [_largest(gradient) for gradient in gradients_of(module, subject.input())]
        missing -= {name for name, size in zip(_trained(module), sizes, strict=True) if size > 1e-12 * max(sizes)}
        if all(subject.may_be_zero(name) for name in missing):
            break
    unnamed = sorted(name for name in missing if not subject.may_be_zero(name))
    expect(not unnamed, "nonzero gradients", f"zero for {', '.join(unnamed)}")
    module, x = subject.copy(), subject.input()
    y = module(x)
    with torch.no_grad():
        for name in missing:
            module.get_parameter(name).add_(1.0)
            expect_close(module(x), y, f"an output that does not depend on {name}, whose gradient is zero")


def finite_differences(subject: Subject) -> None:
    """In double precision the gradients of the input and the parameters agree with finite differences.

    Checked in evaluation and, unless the module has parametrizations, which may update themselves in training, in
    training too: with the same random numbers and new buffers for every pass, which it may change.
    """
    x = subject.input((3, 2, 2), requires_grad=True)
    updated = any(is_parametrized(part) for part in subject.copy().modules())
    for training in (False,) if updated else (False, True):
        module = subject.copy(training=training)
        names = _trained(module)

        def function(
            x: torch.Tensor, *parameters: torch.Tensor, module: nn.Module = module, names: list[str] = names
        ) -> torch.Tensor:
            torch.manual_seed(0)
            buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
            return functional_call(module, {**buffers, **dict(zip(names, parameters, strict=True))}, (x,))

        inputs = (x, *(module.get_parameter(name) for name in names))
        try:
            torch.autograd.gradcheck(function, inputs, fast_mode=True, check_undefined_grad=not training)
        except GradcheckError as error:
            mismatch = re.search(r"with respect to input (\d+)", str(error))
            if mismatch is None:
                raise
            wrong = ["the input", *names][int(mismatch[1])]
            raise Violation(f"the gradient of {wrong} to agree with finite differences", "another gradient") from error


def frozen(subject: Subject) -> None:
    """With the input or the parameters frozen, the gradients of the others are unchanged."""
    module = subject.copy()
    x = subject.input(requires_grad=True)
    of_input, *of_parameters = gradients_of(module, x)
    expect_same_gradients(
        gradients_of(module, x.detach()), of_parameters, "the parameters to have their gradients with a frozen input"
    )
    module.requires_grad_(False)
    expect_same_gradients(gradients_of(module, x), [of_input], "the input to have its gradient with frozen parameters")


def checkpointing(subject: Subject) -> None:
    """Under `torch.utils.checkpoint` the gradients are unchanged."""
    x = subject.input(requires_grad=True)
    reference = gradients_of(subject.copy(training=True), x)
    module = subject.copy(training=True)
    found = gradients_of(module, x, checkpoint(module, x, use_reentrant=False))
    expect_same_gradients(found, reference, "the gradients under checkpointing to be those without")


def deterministic_operators(subject: Subject) -> None:
    """Forward and backward use no operator that lacks a deterministic form on CUDA.

    The dispatched operators are checked, so no GPU is needed. Operators inside a custom operator are not seen.
    """
    for training in (False, True):
        module = subject.copy(torch.float32, training=training)
        for size in (SIZE, (1, 6, 7)):
            with _Operators() as operators:
                gradients_of(module, subject.input(size, dtype=torch.float32, requires_grad=True))
            found = sorted(name for name in operators.names if _NONDETERMINISTIC.fullmatch(name))
            expect(not found, "deterministic operators only", ", ".join(found))


class _Operators(TorchDispatchMode):
    """Records the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def _largest(gradient: torch.Tensor | None) -> float:
    return 0.0 if gradient is None or gradient.numel() == 0 else float(gradient.abs().max())
