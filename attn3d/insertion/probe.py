"""One forward pass without memory or arithmetic: which modules run, on what, and what comes out.

The network is copied with its parameters on the meta device, so a probe costs milliseconds whatever the size of
the network and of the image, and leaves no trace in the network. A network that asks for values on its way, which
there are none of on that device, is copied and run on the CPU.
"""

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attn3d.insertion.attach import detach
from attn3d.insertion.sums import SUMS
from attn3d.layers.conv import is_convolution
from attn3d.networks.registry import run

_SIZES = (
    64,
    96,
    128,
    32,
    224,
)  # tried in turn: most networks take the first, windows and patches want others
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)  # these very classes: subclasses often permute


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        arguments: those that are positional.
        output: what it returned.
        channels_last: whether that has its channels last.
        sums: how many sums of the probe were before its end.
        maker: path of the module without children that returned the output last.
    """

    arguments: tuple[Any, ...]
    output: Any
    channels_last: bool
    sums: int
    maker: str


@dataclass(frozen=True)
class Sum:
    """Two tensors that were added, and the path of the module in whose own forward that was."""

    left: Tensor
    right: Tensor
    path: str


@dataclass
class Probe:
    """One forward pass.

    Attributes:
        image: the input.
        output: of the network.
        calls: of every module, by path.
        concatenations: results and parts.
        sums: of two tensors.
    """

    image: Tensor
    output: Any = None
    calls: dict[str, list[Call]] = field(default_factory=dict)
    concatenations: list[tuple[Tensor, list[Tensor]]] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """What ``tensor`` was concatenated of, or nothing."""
        return next((parts for result, parts in self.concatenations if result is tensor), [])

    def sums_with(self, tensor: Tensor, call: Call) -> list[tuple[Tensor, str]]:
        """What was added to ``tensor`` after a call, and where."""
        after = self.sums[call.sums :]
        found = [(each.left, each.path) for each in after if each.right is tensor]
        return found + [(each.right, each.path) for each in after if each.left is tensor]

    def is_prediction(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is the network's output, where that is a map as large as the image."""
        outputs = self.output if isinstance(self.output, (list, tuple)) else [self.output]
        dense = any(isinstance(output, Tensor) and output.shape[2:] == self.image.shape[2:] for output in outputs)
        return dense and any(tensor is output for output in outputs)


def probe(network: nn.Module, input_shape: Sequence[int] | None = None) -> Probe:
    """Runs a copy of ``network`` in evaluation mode on the meta device.

    Args:
        network: stays as it is.
        input_shape: (B, C, *S); by default a few are tried with the channels of the first convolution.

    Raises:
        ValueError: when the network does not run on ``input_shape``, or on none of those that were tried.
    """
    if input_shape is not None:
        _check_axes(network, input_shape)
        try:
            return _run_somewhere(network, tuple(input_shape))
        except Exception as failure:
            raise ValueError(
                f"`input_shape` {tuple(input_shape)} does not pass through the network: {failure}{_advice(failure)}"
            ) from failure
    shapes = _guesses(network)
    error: Exception | None = None
    for shape in shapes:
        try:
            return _run_somewhere(network, shape)
        except Exception as failure:  # anything can be raised by a network on a shape that is not its own
            error = failure
    raise ValueError(
        f"`input_shape` (B, C, *S) must be given: the network takes none of {shapes or 'the guesses'}"
        + (f"; the last failed with: {error}{_advice(error)}" if error else ", as it has no convolution to guess from")
    ) from error


def _convolutions(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if is_convolution(module)]


def _check_axes(network: nn.Module, shape: Sequence[int]) -> None:
    axes = {len(conv.kernel_size) for conv in _convolutions(network)}
    if len(shape) < 3 or (axes and len(shape) - 2 not in axes):
        expected = " or ".join(str(count + 2) for count in sorted(axes)) or "at least 3"
        raise ValueError(f"`input_shape` (B, C, *S) must have {expected} sizes, got {tuple(shape)}")


def _guesses(network: nn.Module) -> list[tuple[int, ...]]:
    convolutions = _convolutions(network)
    if not convolutions:
        return []
    dims = len(convolutions[0].kernel_size)
    channels = dict.fromkeys([convolutions[0].in_channels, min(conv.in_channels for conv in convolutions)])
    return [(1, count, *[size] * dims) for count in channels for size in _SIZES]


def _advice(error: Exception) -> str:
    """What to do where a network wants more than an image."""
    wanted = "required positional argument" in str(error)
    return "; say how it is called on an image: attn3d.networks.register_sites(.., run=)" if wanted else ""


def _run_somewhere(network: nn.Module, shape: tuple[int, ...]) -> Probe:
    """Runs it on the meta device, or where that has no values that the network asks for, on the CPU."""
    try:
        return _run(network, shape, torch.device("meta"))
    except Exception as error:  # PyTorch has no class of its own for it
        if "meta" not in str(error).lower() or any(tensor.is_meta for tensor in network.parameters()):
            raise
    return _run(network, shape, torch.device("cpu"))


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Probe:
    tensors = [*network.parameters(), *network.buffers()]
    twins: dict[int, Any] = {id(tensor): _copied(tensor, device) for tensor in tensors}
    twin = copy.deepcopy(network, twins).eval()
    detach(twin)  # attention keeps shapes
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    with torch.no_grad(), torch.random.fork_rng([]), device:
        result = Probe(torch.zeros(shape, dtype=floating[0] if floating else None))
        running = _watch(twin, result, twins)
        with _Meetings(result, running):
            result.output = run(twin, result.image)
    return result


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    twin = torch.empty_like(tensor, device="meta") if device.type == "meta" else tensor.detach().to(device, copy=True)
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _own_hook(hook: Callable[..., Any], twins: Mapping[int, Any]) -> Callable[..., Any] | None:
    """A hook of the network's own, for its twin; None for a user's, who is not to see the probe.

    The network's own are its methods, which were copied with it, and functions that refer to its modules alone.
    """
    if isinstance(hook, types.MethodType):
        return hook if isinstance(hook.__self__, nn.Module) else None
    cells = getattr(hook, "__closure__", None)
    if not cells:
        return None
    contents = [twins.get(id(cell.cell_contents)) for cell in cells]
    if any(not isinstance(content, nn.Module) for content in contents):
        return None
    closure = tuple(types.CellType(content) for content in contents)
    return types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, closure)


def _watch(twin: nn.Module, result: Probe, twins: Mapping[int, Any]) -> list[str]:
    """Records every call. Of other forward hooks only the network's own run.

    Returns:
        the paths of the modules that run, the innermost last, as long as the network runs.
    """
    formats: list[tuple[torch.Size, bool]] = []  # what the layers with a known format gave, in time
    starts: list[int] = []
    running: list[str] = []
    makers: dict[int, str] = {}  # by the id of what they returned, which the calls keep alive

    def enter(path: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        running.append(path)
        starts.append(len(formats))

    def leave(path: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()
        last = isinstance(output, Tensor) and type(module) in _CHANNELS_LAST
        if last or (isinstance(output, Tensor) and isinstance(module, _CHANNELS_FIRST)):
            formats.append((output.shape, last))
        within = [last for shape, last in formats[starts.pop() :] if shape == getattr(output, "shape", None)]
        kept = list(output) if isinstance(output, list) else output  # its reader may empty the list
        channels_last = bool(within) and within[-1]
        if not module._modules:
            makers[id(output)] = path
        call = Call(arguments, kept, channels_last, len(result.sums), makers.get(id(output), ""))
        result.calls.setdefault(path, []).append(call)

    for path, module in twin.named_modules():
        own = {number: _own_hook(hook, twins) for number, hook in module._forward_hooks.items()}
        module._forward_hooks.clear()
        module._forward_hooks.update((number, hook) for number, hook in own.items() if hook is not None)
        module.register_forward_pre_hook(lambda *call, path=path: enter(path, *call), prepend=True)
        module.register_forward_hook(lambda *call, path=path: leave(path, *call))
    return running


class _Meetings(TorchFunctionMode):
    """Records where maps are concatenated or added."""

    def __init__(self, result: Probe, running: list[str]) -> None:
        super().__init__()
        self.result = result
        self.running = running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SUMS and len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            self.result.sums.append(Sum(args[0], args[1], self.running[-1] if self.running else ""))
        output = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat, torch.concatenate) and args:
            self.result.concatenations.append((output, list(args[0])))
        return output
