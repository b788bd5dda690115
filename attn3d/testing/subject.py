"""The module under test as the conditions see it, and how they say what they found."""

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

from attn3d.arguments import positive_integer
from attn3d.layers.spatial import check_spatial_dims

SIZE = (4, 5, 3)
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


class Violation(AssertionError):
    """What a condition expected and what it found."""

    def __init__(self, expected: str, found: object) -> None:
        super().__init__(f"expected {expected}, found {found}")


class WithSignal(nn.Module):
    """A mechanism that takes a gating signal, as a module of its input alone.

    The signal is every second voxel of the input along every axis, with its channels repeated as often as it takes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, x: Tensor) -> Tensor:
        """Calls the mechanism with ``x`` and the signal."""
        return self.module(x, signal_of(x, self.module.gating_channels))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Those of the mechanism."""
        return self.module.attention_weights(x, signal_of(x, self.module.gating_channels), queries)


def signal_of(x: Tensor, channels: int) -> Tensor:
    """Every second voxel of (B, C, *S) along every axis, with so many channels."""
    coarse = x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))]
    return torch.cat([coarse] * -(-channels // x.shape[1]), 1)[:, :channels]


@dataclass(frozen=True)
class Subject:
    """The module under test, which is never run: conditions run copies, on inputs that are made here."""

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
        names = [name for name, _ in self.module.named_parameters()]
        for pattern in self.zero_gradient:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"`zero_gradient` names no parameter: {pattern!r}; there are {', '.join(names)}")
        if getattr(self.module, "takes_signal", False):
            object.__setattr__(self, "module", WithSignal(self.module))
            object.__setattr__(self, "zero_gradient", tuple(f"module.{pattern}" for pattern in self.zero_gradient))

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        tensors = chain(self.module.parameters(), self.module.buffers(), [torch.empty(0)])
        return next(tensors).device

    @contextlib.contextmanager
    def random_state_kept(self) -> Iterator[None]:
        """Starts from a fixed seed and puts the generators back."""
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
        """A copy with random parameters, the same for the same seed, and random running statistics."""
        module = copy.deepcopy(self.module).to(dtype).train(training)
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
                elif isinstance(getattr(child, "dropout", None), float):
                    child.dropout = dropout
        return module

    def input(
        self,
        size: tuple[int, ...] = SIZE,
        *,
        batch: int = 2,
        dtype: torch.dtype = torch.float64,
        requires_grad: bool = False,
    ) -> Tensor:
        """A random (batch, C, *size), ``size`` cut to the module's number of axes."""
        shape = (batch, self.channels, *size[: self.spatial_dims])
        x = torch.randn(shape, dtype=torch.float64).to(self.device, dtype)
        return x.requires_grad_(requires_grad)

    def may_be_zero(self, name: str) -> bool:
        """Whether the caller named this parameter in ``zero_gradient``."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.zero_gradient)


def expect(holds: bool, expected: str, found: object) -> None:
    """Raises a `Violation` unless the condition holds."""
    if not holds:
        raise Violation(expected, found)


def first_line(error: Exception) -> str:
    """The class of an exception and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def run(module: nn.Module, x: Tensor) -> Tensor:
    """The output of ``module``, which has the shape of ``x``; what the module raises is told with that shape."""
    try:
        y = module(x)
    except Exception as error:
        raise Violation(f"an output for shape {tuple(x.shape)}", first_line(error)) from error
    expect_shape(y, x)
    return y


def expect_shape(y: Tensor, x: Tensor) -> None:
    """``y`` is a tensor of the shape of ``x``."""
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    expect(found == tuple(x.shape), f"shape {tuple(x.shape)}", found)


def expect_finite(y: Tensor, what: str) -> None:
    """``y`` has no NaN and no infinity."""
    expect(bool(y.isfinite().all()), f"{what} to be finite", f"{int((~y.isfinite()).sum())} that are not")


def expect_equal(y: Tensor, reference: Tensor, what: str) -> None:
    """``y`` is ``reference`` bit by bit."""
    expect_shape(y, reference)
    if not torch.equal(y, reference):
        raise Violation(f"{what}, bit by bit", f"differences up to {_difference(y, reference):.2g}")


def expect_close(y: Tensor, reference: Tensor, what: str) -> None:
    """``y`` is ``reference`` to the rounding of its dtype."""
    expect_shape(y, reference)
    largest = _difference(reference, torch.zeros_like(reference))
    tolerance = _TOLERANCE.get(y.dtype, 1e-2) * max(1.0, largest)
    difference = _difference(y, reference)
    expect(difference <= tolerance, f"{what}, to {tolerance:.0e}", f"differences up to {difference:.2g}")


def _difference(y: Tensor, reference: Tensor) -> float:
    difference = (y.detach().double() - reference.detach().double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def gradients_of(module: nn.Module, x: Tensor, y: Tensor | None = None) -> list[Tensor | None]:
    """The gradients of ``x`` and of the parameters that require one, None for those without a path to it.

    What they are gradients of is a sum of the output ``y``, by default ``module(x)``, with unequal weights: the
    plain sum would cancel those of a softmax.
    """
    y = module(x) if y is None else y
    wanted = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    if not wanted:
        return []
    weights = torch.linspace(1.0, 9.0, y.numel(), dtype=torch.float64, device=y.device).sin()
    return list(torch.autograd.grad(y, wanted, weights.view(y.shape).to(y.dtype), allow_unused=True))


def expect_same_gradients(found: list[Tensor | None], reference: list[Tensor | None], what: str) -> None:
    """The same tensors have gradients, and the same ones."""
    for gradient, other in zip(found, reference, strict=True):
        expect((gradient is None) == (other is None), what, "a gradient on one side only")
        if gradient is not None and other is not None:
            expect_close(gradient, other, what)
