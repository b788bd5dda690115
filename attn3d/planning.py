"""Estimates the cost of a mechanism at a shape without running it.

The mechanism runs on fake tensors, which have shapes but no memory. The allocations that PyTorch would make are counted
at every step, and the temporary memory of operators is added.
"""

import copy
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from attn3d.arguments import MemoryBudget, natural_number, of_python, one_of, positive_integer, read_bytes
from attn3d.attention.memory import register_scratch, scratch_bytes
from attn3d.factory import AttentionSpec, create_attention, find
from attn3d.insertion.probe import held_tensors

MEMINFO = Path("/proc/meminfo")


class Cost(NamedTuple):
    """The cost of a pass.

    Attributes:
        memory: peak memory in bytes, in addition to the module and its input.
        flops: floating point operations of matrix products and convolutions; a multiply-add counts as two.
    """

    memory: int
    flops: int


@register_scratch(torch.ops.aten.convolution.default)
def _convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Sequence[int], *_: Any
) -> int:
    """The CPU library copies the input or the output to another layout, and both of them for depthwise convolutions
    without dilation."""
    given = x.numel() * x.element_size()
    result = given // x.shape[1] * weight.shape[0]
    return given + result if _is_depthwise(x, weight) and max(dilation) == 1 else max(given, result)


@register_scratch(torch.ops.aten.convolution_backward.default)
def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    given, result = (tensor.numel() * tensor.element_size() for tensor in (x, grad))
    return max(given, result) if _is_depthwise(x, weight) else given + result


def _is_depthwise(x: Tensor, weight: Tensor) -> bool:
    return weight.shape[1] == 1 < x.shape[1]


class _BiasInPlace(TorchFunctionMode):
    """Adds the bias of linear layers in place, as PyTorch does unless a dispatch mode is active."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear and len(args) == 3 and args[2] is not None:
            x, weight, bias = args
            if x.dim() > 2 and not x.is_contiguous():  # otherwise it is one `addmm`
                return (x @ weight.t()).add_(bias)
        return function(*args, **(kwargs or {}))


class _Meter(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that operators allocate, except for ``given``."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = 0
        self.live = 0
        self.peak = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live + scratch_bytes(operator, args))
        packet = getattr(operator, "_overloadpacket", None)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.live += size
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def estimate_cost(
    mechanism: nn.Module | AttentionSpec,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    training: bool = True,
    **options: Any,
) -> Cost:
    """Estimates the memory and the operations of a pass over a volume on a CPU, which need not fit this machine.

    On a GPU, patterns with groups need more memory: all groups are computed at once. The memory in which PyTorch
    unfolds the input of convolutions on a CPU, of some small ones and of all in double precision, is not counted, nor
    are the copies that it makes for operators of two dtypes, as in half precision. A mechanism that takes a gating
    signal gets a signal of half the size along every axis.

    Args:
        mechanism: a module (B, C, *S) -> (B, C, *S), or a spec as in `attn3d.create_attention`.
        shape: shape of the input, (B, C, *S).
        dtype: dtype of the input and the parameters.
        training: whether to count forward and backward, with gradients of the input and the trained parameters; only
            forward otherwise.
        options: options of the mechanism, if it is a spec.

    Returns:
        a `Cost`: peak memory in addition to the module and its input, and operations.

    Raises:
        TypeError, ValueError: if ``shape`` is not (B, C, *S), the mechanism or its options are unknown or do not
            support this shape, or there are options with a module.
    """
    shape = _read_shape(shape)
    mode = FakeTensorMode()
    module: Any = _on_fake_tensors(mode, mechanism, shape, dtype, options).train(training)
    with mode:
        given = [torch.empty(shape, dtype=dtype, requires_grad=training)]
        if getattr(module, "takes_signal", False):
            coarse = [shape[0], module.gating_channels, *(-(-size // 2) for size in shape[2:])]
            given.append(torch.empty(coarse, dtype=dtype, requires_grad=training))
        meter = _Meter([*given, *module.parameters(), *module.buffers()])
        with torch.set_grad_enabled(training), _BiasInPlace(), meter:
            y = module(*given)
            if training:
                # Not `backward`, which would copy gradients into `grad`, since this mode holds references to them.
                wanted = [*given, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
                torch.autograd.grad(y, wanted, torch.empty_like(y), allow_unused=True)
        return Cost(meter.peak, meter.flops)


def _read_shape(shape: Sequence[int]) -> list[int]:
    given = of_python(shape)
    if not isinstance(given, tuple) or len(given) not in (3, 4, 5):
        raise ValueError(f"`shape` must be (B, C, *S) with one to three sizes in S, got {given!r}")
    return [natural_number("shape", size) for size in given]


def _on_fake_tensors(
    mode: FakeTensorMode,
    mechanism: nn.Module | AttentionSpec,
    shape: Sequence[int],
    dtype: torch.dtype,
    options: dict[str, Any],
) -> nn.Module:
    """Returns a copy of the mechanism with fake parameters."""
    if not isinstance(mechanism, nn.Module):
        find(mechanism, "mechanism")
        mechanism = create_attention(mechanism, spatial_dims=len(shape) - 2, channels=shape[1], **options)
    elif options:
        raise TypeError(f"`options` are those of a spec; a module has its own already, got {', '.join(options)}")
    fakes: dict[int, Tensor] = {}
    with mode:
        for tensor in held_tensors(mechanism):  # parameters, buffers and others
            fake = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
    twin = copy.deepcopy(mechanism, fakes)  # outside the mode, which cannot copy tensors that are plain attributes
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 0.0  # None would be computed from the value of a tensor
    return twin


def estimate_memory(
    mechanism: nn.Module | AttentionSpec,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    training: bool = True,
    **options: Any,
) -> int:
    """Estimates the peak memory of a pass in bytes, in addition to the module and its input; see `estimate_cost`."""
    return estimate_cost(mechanism, shape, dtype=dtype, training=training, **options).memory


class Plan(NamedTuple):
    """The cost of a pattern and a backend at a shape.

    Attributes:
        pattern: name of the pattern.
        backend: name of the backend.
        forward: cost of forward.
        training: cost of forward and backward.
        fits: whether training fits the given memory.
    """

    pattern: str
    backend: str
    forward: Cost
    training: Cost
    fits: bool


_PLANNED: dict[str, Any] = {
    "global": "global",
    "window 8": ("window", {"size": 8}),
    "window 8, shifted": ("window", {"size": 8, "shift": True}),
    "grid 8": ("grid", {"size": 8}),
    "axial": "axial",
    "neighborhood 7": ("neighborhood", {"size": 7}),
    "pooled_keys 8": ("pooled_keys", {"stride": 8}),
}


def plan(
    shape: Sequence[int],
    channels: int,
    *,
    mechanism: str = "non_local",
    memory: MemoryBudget = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Plan]:
    """Estimates the cost of attention over a volume with every pattern and backend on a CPU, see `estimate_cost`.

    The volume need not fit this machine.

    Args:
        shape: S of the volume.
        channels: number of channels C.
        mechanism: "non_local" or "mhsa".
        memory: available bytes, as a number or a string such as "8GiB"; by default the free memory of the GPU, or the
            available memory of the machine if there is no GPU.
        dtype: dtype of the volume.

    Yields:
        one `Plan` at a time, because each takes a moment to compute.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range, or the default of ``memory`` is
            unknown, as on Windows and macOS without a GPU.
    """
    one_of("mechanism", mechanism, ("non_local", "mhsa"))
    given = of_python(shape)
    if not isinstance(given, tuple) or len(given) not in (1, 2, 3):
        raise ValueError(f"`shape` must be one to three sizes, such as (96, 96, 96), got {given!r}")
    shape = [positive_integer("shape", size) for size in given]
    limit = read_bytes("memory", memory)
    if limit is None:
        limit = free_memory()
    for name, pattern in _PLANNED.items():
        for backend in ("sdpa", "chunked", "math"):
            spec = (mechanism, {"pattern": pattern, "backend": backend})
            x_shape = (1, positive_integer("channels", channels), *shape)
            forward = estimate_cost(spec, x_shape, dtype=dtype, training=False)
            training = estimate_cost(spec, x_shape, dtype=dtype, training=True)
            yield Plan(name, backend, forward, training, training.memory <= limit)


def free_memory() -> int:
    """Returns the free memory in bytes of the GPU, or the available memory of the machine if there is no GPU.

    Raises:
        ValueError: if there is no GPU and the available memory is unknown, as on Windows and macOS.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    # The free pages that os.sysconf counts leave out the cache, which Linux gives back to programs.
    if MEMINFO.exists() and (available := re.search(r"^MemAvailable:\s*(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)):
        return 1024 * int(available[1])
    raise ValueError('`memory` must be given on this machine, such as "8GiB": its available memory is unknown')
