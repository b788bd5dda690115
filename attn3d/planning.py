"""What a mechanism costs at a shape, before anything runs.

The mechanism runs on fake tensors, which have shapes and no memory: what is alive at every step is counted as
PyTorch would allocate it, and for operators that take memory while they run, that is added.
"""

import copy
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from attn3d.arguments import MemoryBudget, one_of, positive_integer, read_bytes
from attn3d.attention.memory import register_scratch, scratch_bytes
from attn3d.factory import AttentionSpec, create_attention


class Cost(NamedTuple):
    """What a pass costs.

    Attributes:
        memory: the most bytes that are alive at once, beyond the module and its input.
        flops: floating point operations of products and convolutions, two for a multiplication and an addition.
    """

    memory: int
    flops: int


@register_scratch(torch.ops.aten.convolution.default)
def _convolution(x: Tensor, weight: Tensor, *_: Any) -> int:
    """The CPU's library lays input and output out anew."""
    size = x.numel() * x.element_size()
    return size + size // x.shape[1] * weight.shape[0]


@register_scratch(torch.ops.aten.convolution_backward.default)
def _convolution_backward(grad: Tensor, x: Tensor, *_: Any) -> int:
    return max(grad.numel(), x.numel()) * x.element_size()


class _Meter(TorchDispatchMode):
    """Counts operations, and the bytes of what operators make until it is dropped; not those of what is given."""

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
    """What a pass over a volume costs, which need not fit this machine.

    A mechanism that takes a gating signal gets one of half the size along every axis.

    Args:
        mechanism: a module (B, C, *S) -> (B, C, *S), or a spec as `attn3d.create_attention` takes it.
        shape: of the input, (B, C, *S).
        dtype: of the input and the parameters.
        training: forward and backward, with a gradient for the input and the parameters; else forward alone.
        options: of the mechanism, when it is a spec.

    Returns:
        memory beyond the module and its input, and operations.

    Raises:
        TypeError, ValueError: when the mechanism or its options are unknown, or do not take this shape.
    """
    mode = FakeTensorMode()
    module: Any = _on_fake_tensors(mode, mechanism, shape, dtype, options).train(training)
    with mode:
        given = [torch.empty(list(shape), dtype=dtype, requires_grad=training)]
        if getattr(module, "takes_signal", False):
            coarse = [shape[0], module.gating_channels, *(-(-size // 2) for size in shape[2:])]
            given.append(torch.empty(coarse, dtype=dtype, requires_grad=training))
        with torch.set_grad_enabled(training), _Meter([*given, *module.parameters(), *module.buffers()]) as meter:
            y = module(*given)
            if training:
                # Not `backward`: to fill `grad`, it would copy what this mode holds on to.
                wanted = [*given, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
                torch.autograd.grad(y, wanted, torch.empty_like(y), allow_unused=True)
        return Cost(meter.peak, meter.flops)


def _on_fake_tensors(
    mode: FakeTensorMode,
    mechanism: nn.Module | AttentionSpec,
    shape: Sequence[int],
    dtype: torch.dtype,
    options: dict[str, Any],
) -> nn.Module:
    """A copy of the mechanism whose parameters have a shape and no memory."""
    if not isinstance(mechanism, nn.Module):
        mechanism = create_attention(mechanism, spatial_dims=len(shape) - 2, channels=shape[1], **options)
    fakes: dict[int, Tensor] = {}
    with mode:
        for tensor in mechanism.buffers():
            fakes[id(tensor)] = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        for parameter in mechanism.parameters():
            fakes[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype))
    return copy.deepcopy(mechanism, fakes)  # out of the mode, which copies no tensor that is a plain attribute


def estimate_memory(
    mechanism: nn.Module | AttentionSpec,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    training: bool = True,
    **options: Any,
) -> int:
    """The most bytes that are alive at once in a pass, beyond the module and its input; see `estimate_cost`."""
    return estimate_cost(mechanism, shape, dtype=dtype, training=training, **options).memory


class Plan(NamedTuple):
    """A pattern and a backend at a shape.

    Attributes:
        pattern: its spec.
        backend: its name.
        forward: what inference costs.
        training: what forward and backward cost.
        fits: whether training fits the memory that was asked for.
    """

    pattern: str
    backend: str
    forward: Cost
    training: Cost
    fits: bool


PATTERNS: dict[str, Any] = {
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
    """What an attention over a volume costs in every pattern and backend, for a volume that need not fit this machine.

    Args:
        shape: S, the volume.
        channels: C.
        mechanism: "non_local" or "mhsa".
        memory: bytes that there are, as a number or "8GiB"; None: what is free where this runs.
        dtype: of the volume.

    Yields:
        a `Plan` at a time, since each takes a moment.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.
    """
    one_of("mechanism", mechanism, ("non_local", "mhsa"))
    for size in shape:
        positive_integer("shape", size)
    limit = read_bytes("memory", memory)
    if limit is None:
        limit = free_memory()
    for name, pattern in PATTERNS.items():
        for backend in ("sdpa", "chunked", "math"):
            of = (mechanism, {"pattern": pattern, "backend": backend})
            whole = (1, positive_integer("channels", channels), *shape)
            forward, training = (estimate_cost(of, whole, dtype=dtype, training=mode) for mode in (False, True))
            yield Plan(name, backend, forward, training, training.memory <= limit)


def free_memory() -> int:
    """The bytes that are free on the GPU, or without one on the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
