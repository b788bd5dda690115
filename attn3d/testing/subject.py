"""The module under test, inputs for it, and comparisons that raise a `Violation`."""

import contextlib
import copy
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of, positive_integer
from attn3d.layers.spatial import check_spatial_dims

SIZE = (4, 5, 3)
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


class Violation(AssertionError):
    """The expected and the found value of a condition that does not hold."""

    def __init__(self, expected: str, found: object) -> None:
        super().__init__(f"expected {expected}, found {found}")


class WithSignal(nn.Module):
    """Wraps a mechanism that takes a gating signal as a module with one input.

    The signal is every second voxel of the input along every axis, with channels repeated as needed.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, x: Tensor) -> Tensor:
        """Calls the mechanism with ``x`` and the signal."""
        channels = self.module.gating_channels
        coarse = x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))]
        return self.module(x, torch.cat([coarse] * -(-channels // x.shape[1]), 1)[:, :channels])


@dataclass
class Subject:
    """The module under test. Conditions never run it but run copies of it on inputs that are created here."""

    module: nn.Module
    spatial_dims: int
    channels: int
    zero_gradient: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("aot_eager",)

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module, got {self.module!r}")
        check_spatial_dims(self.spatial_dims)
        positive_integer("channels", self.channels)
        for backend in self.backends:
            one_of("backends", backend, torch.compiler.list_backends(None))
        if not self.backends:
            raise ValueError("`backends` must have at least one backend of torch.compile, got none")
        names = [name for name, _ in self.module.named_parameters()]
        for pattern in self.zero_gradient:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"`zero_gradient` must match a parameter, got {pattern!r}; there are {', '.join(names)}"
                )
        if getattr(self.module, "takes_signal", False):
            self.module = WithSignal(self.module)
            self.zero_gradient = tuple(f"module.{pattern}" for pattern in self.zero_gradient)

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        tensors = chain(self.module.parameters(), self.module.buffers(), [torch.empty(0)])
        return next(tensors).device

    @contextlib.contextmanager
    def random_state_kept(self) -> Iterator[None]:
        """Sets a fixed seed, and restores the state of the generators afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            yield

    def copy(
        self,
        dtype: torch.dtype = torch.float64,
        *,
        training: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> nn.Module:
        """Returns a copy with random parameters and running statistics that depend only on the seed."""
        try:
            module = copy.deepcopy(self.module)
        except Exception as error:
            raise Violation("a module that can be deep-copied", first_line(error)) from error
        module = module.to(dtype).train(training)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.grad = None
                inputs = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 4
                scale = max(1, inputs) ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            child: Any
            for child in module.modules():
                if isinstance(getattr(child, "running_var", None), Tensor):
                    child.running_mean.copy_(torch.randn(child.running_mean.shape, generator=generator))
                    child.running_var.copy_(torch.rand(child.running_var.shape, generator=generator) + 0.5)
                if isinstance(child, nn.modules.dropout._DropoutNd):
                    child.p = dropout
                for name in ("dropout", "drop_prob"):
                    if isinstance(getattr(child, name, None), float):
                        setattr(child, name, dropout)
        return module

    def input(
        self,
        size: tuple[int, ...] = SIZE,
        *,
        batch: int = 2,
        dtype: torch.dtype = torch.float64,
        requires_grad: bool = False,
    ) -> Tensor:
        """Returns a random (batch, C, *size), with ``size`` truncated to the module's number of axes."""
        shape = (batch, self.channels, *size[: self.spatial_dims])
        x = torch.randn(shape, dtype=torch.float64).to(self.device, dtype)
        return x.requires_grad_(requires_grad)

    def may_be_zero(self, name: str) -> bool:
        """Returns whether a parameter matches ``zero_gradient``."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.zero_gradient)


def expect(holds: bool, expected: str, found: object) -> None:
    """Raises a `Violation` unless the condition holds."""
    if not holds:
        raise Violation(expected, found)


def first_line(error: Exception) -> str:
    """Returns the class of an exception and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Returns the output of ``module`` and checks its shape; errors of the module are reported with that shape."""
    try:
        y = module(x)
    except Exception as error:
        raise Violation(f"an output for shape {tuple(x.shape)}", first_line(error)) from error
    expect_shape(y, x)
    return y


def expect_shape(y: Tensor, x: Tensor) -> None:
    """Checks that ``y`` is a tensor with the shape of ``x``."""
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    expect(found == tuple(x.shape), f"shape {tuple(x.shape)}", found)


def expect_finite(y: Tensor | None, what: str) -> None:
    """Checks that ``y``, which may be a missing gradient, has neither NaN nor infinity."""
    if y is not None:
        expect(bool(y.isfinite().all()), f"{what} to be finite", f"{int((~y.isfinite()).sum())} that are not")


def expect_equal(y: Tensor, reference: Tensor, what: str) -> None:
    """Checks that ``y`` is bitwise equal to ``reference``."""
    expect_shape(y, reference)
    if not torch.equal(y, reference):
        raise Violation(f"{what}, bit by bit", f"differences up to {_difference(y, reference):.2g}")


def expect_close(y: Tensor, reference: Tensor, what: str) -> None:
    """Checks that ``y`` equals ``reference`` up to the rounding of its dtype."""
    expect_shape(y, reference)
    largest = _difference(reference, torch.zeros_like(reference))
    tolerance = _TOLERANCE.get(y.dtype, 1e-2) * max(1.0, largest)
    difference = _difference(y, reference)
    expect(difference <= tolerance, f"{what}, to {tolerance:.0e}", f"differences up to {difference:.2g}")


def _difference(y: Tensor, reference: Tensor) -> float:
    difference = (y.detach().double() - reference.detach().double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def gradients_of(module: nn.Module, x: Tensor, y: Tensor | None = None) -> list[Tensor | None]:
    """Returns the gradients of ``x`` and of the trainable parameters, None for tensors that ``y`` does not depend on.

    They are the gradients of a weighted sum of the output ``y``, by default ``module(x)``. The weights are unequal,
    because the gradients of a plain sum would vanish for a softmax.
    """
    y = module(x) if y is None else y
    wanted = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    if not wanted:
        return []
    weights = torch.linspace(1.0, 9.0, y.numel(), dtype=torch.float64, device=y.device).sin()
    return list(torch.autograd.grad(y, wanted, weights.view(y.shape).to(y.dtype), allow_unused=True))


def expect_same_gradients(found: list[Tensor | None], reference: list[Tensor | None], what: str) -> None:
    """Checks that the same tensors have gradients, and that these are equal."""
    for gradient, other in zip(found, reference, strict=True):
        expect((gradient is None) == (other is None), what, "a gradient on one side only")
        if gradient is not None and other is not None:
            expect_close(gradient, other, what)
