"""A forward pass on the meta device that records which modules run, their inputs and their outputs.

The network is copied to the meta device, so that a probe takes milliseconds for any size of network and image, and the
network is not changed. A network whose forward reads tensor values, which the meta device does not have, is copied to
the CPU instead.
"""

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attn3d.capture import modules_by_path, without_compiled_code
from attn3d.insertion.attach import detach
from attn3d.insertion.sums import CHANGES, SUMS
from attn3d.layers.conv import is_convolution
from attn3d.networks.registry import run

# Tried in this order: most networks accept the first; windows and patches may require others.
_SIZES = (64, 96, 128, 32, 224)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_PLAIN = (str, int, float, types.NoneType)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)  # not their subclasses, which often permute


class _NotCopiedError(TypeError):
    """The network cannot be copied, on whatever image it runs."""


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        arguments: the positional arguments.
        output: the returned value.
        channels_last: whether the channels of the output are last.
        sums: the number of sums in the probe before the end of the call.
        maker: path of the last module without children that returned the output.
    """

    arguments: tuple[Any, ...]
    output: Any
    channels_last: bool
    sums: int
    maker: str


@dataclass(frozen=True)
class Sum:
    """Two tensors that were added, and the path of the module whose forward added them."""

    left: Tensor
    right: Tensor
    path: str


@dataclass
class Probe:
    """One forward pass.

    Attributes:
        image: the input.
        output: the output of the network.
        calls: the calls of every module, by path.
        concatenations: the results and parts of all concatenations.
        sums: all sums of two tensors.
        changes: tensors, and what they became in another format or dtype.
    """

    image: Tensor
    output: Any = None
    calls: dict[str, list[Call]] = field(default_factory=dict)
    concatenations: list[tuple[Tensor, list[Tensor]]] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    changes: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """Returns the parts that were concatenated to ``tensor``, or an empty list."""
        return next((parts for result, parts in self.concatenations if result is tensor), [])

    def sums_with(self, tensor: Tensor, call: Call) -> list[tuple[Tensor, str]]:
        """Returns the tensors that were added to ``tensor`` after a call, with the paths of the adding modules.

        A sum with ``tensor`` in another format or dtype counts too.
        """
        same = {id(tensor)}
        for before, changed in self.changes:
            if id(before) in same:
                same.add(id(changed))
        after = self.sums[call.sums :]
        found = [(each.left, each.path) for each in after if id(each.right) in same]
        return found + [(each.right, each.path) for each in after if id(each.left) in same]

    def is_prediction(self, tensor: Tensor) -> bool:
        """Returns whether ``tensor`` is an output of a network that returns maps of the size of the image."""
        outputs = tree_leaves(self.output)
        dense = any(isinstance(output, Tensor) and output.shape[2:] == self.image.shape[2:] for output in outputs)
        return dense and any(tensor is output for output in outputs)


def probe(network: nn.Module, input_shape: Sequence[int] | None = None) -> Probe:
    """Runs a copy of ``network`` in evaluation mode on the meta device.

    Args:
        network: the network, which is not changed.
        input_shape: (B, C, *S); by default several shapes are tried, with the channels of the first convolution.

    Raises:
        ValueError: if the network does not run on ``input_shape``, or on any of the shapes that were tried.
    """
    if input_shape is None:
        shapes = _guesses(network)
        refusal = f"`input_shape` (B, C, *S) must be given: the network accepts none of {shapes}; the last failed with"
    else:
        _check_axes(network, input_shape)
        shapes = [tuple(input_shape)]
        refusal = f"`input_shape` must be accepted by the network, got {shapes[0]}"
    for shape in shapes:
        try:
            return _run_somewhere(network, shape)
        except _NotCopiedError:
            raise
        except Exception as error:  # networks raise all kinds of errors for unsupported shapes
            if shape == shapes[-1]:
                raise ValueError(f"{refusal}: {error}{_advice(error)}") from error
    raise ValueError("`input_shape` (B, C, *S) must be given: the network has no convolution to guess it from")


def _convolutions(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if is_convolution(module)]


def _check_axes(network: nn.Module, shape: Sequence[int]) -> None:
    if not isinstance(shape, Sequence):
        raise TypeError(f"`input_shape` must be the sizes (B, C, *S) of an image, got {shape!r}")
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
    """Returns what to do if a network takes more arguments than an image, or something else, such as a dictionary."""
    is_unpacked = isinstance(error, ValueError) and "to unpack" in str(error)  # such as a tuple of two images
    if not is_unpacked and not isinstance(error, (TypeError, LookupError, AttributeError)):  # a size raises others
        return ""
    return "; if its input is not one image, register how to call it: attn3d.networks.register_sites(.., run=)"


def _run_somewhere(network: nn.Module, shape: tuple[int, ...]) -> Probe:
    """Runs the network on the meta device, or on the CPU if it reads tensor values."""
    try:
        return _run(network, shape, torch.device("meta"))
    except Exception as error:  # PyTorch has no specific class for this error
        if "meta" not in str(error).lower() or any(tensor.is_meta for tensor in network.parameters()):
            raise
    return _run(network, shape, torch.device("cpu"))


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Probe:
    tensors = [*network.parameters(), *network.buffers()]
    twins: dict[int, Any] = {id(tensor): _copied(tensor, device) for tensor in [*held_tensors(network), *tensors]}
    twins |= {id(hook): hook for hook in _hooks(network)}  # not copied, since they may hold anything
    try:
        twin = copy.deepcopy(network, twins).eval()
    except Exception as error:  # what an object raises that does not support it
        raise _NotCopiedError(f"`net` must support copy.deepcopy, got {error}") from error
    detach(twin)  # attention keeps shapes
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    # Functions that modules hold are not copied, so the modules of their closures would run in the network itself.
    held = [value for module in network.modules() for value in vars(module).values()]
    closures = any(isinstance(value, types.FunctionType) for value in held)
    mode = evaluating(network) if closures else nullcontext()
    with torch.no_grad(), torch.random.fork_rng([]), without_compiled_code(), mode, device:
        result = Probe(torch.zeros(shape, dtype=floating[0] if floating else None))
        running = _watch(twin, result, twins)
        with _Meetings(result, running):
            result.output = run(twin, result.image)
    if closures and set(result.calls) <= {""}:
        raise ValueError("its forward is a function that calls the modules of its closure, which a copy does not reach")
    return result


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and restores the mode of every module afterwards."""
    training = {module: module.training for module in net.modules()}
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def held_tensors(network: nn.Module) -> list[Tensor]:
    """Returns all tensors that modules hold. `deepcopy` cannot copy results, such as the heads of a DynUNet."""
    held = [value for module in network.modules() for value in tree_leaves(vars(module))]
    return [value for value in held if isinstance(value, Tensor)]


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    on_meta = device.type == "meta"
    twin = torch.empty_like(tensor, device="meta") if on_meta else tensor.detach().to(device, copy=True)
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _hooks(network: nn.Module) -> list[Any]:
    """Returns all hooks of modules, except modules of the network that are hooks themselves."""
    modules = {id(module) for module in network.modules()}
    dictionaries = [
        of_module
        for module in network.modules()
        for name, of_module in vars(module).items()
        if name.endswith("_hooks") and isinstance(of_module, dict)
    ]
    return [hook for hooks in dictionaries for hook in hooks.values() if id(hook) not in modules]


def _own_hook(hook: Callable[..., Any], twins: Mapping[int, Any], own: set[Any]) -> Callable[..., Any] | None:
    """Returns the copy's version of a hook that belongs to the network, or None for a user's hook, which must not run.

    The hooks of the network are its modules, methods of these and of other objects that it holds, also in a
    `functools.partial`, and closures over them and over names and numbers. ``own`` are the modules of the copy.
    """

    def of_copy(held: Any) -> Any:
        twin = twins.get(id(held))
        if isinstance(held, nn.Module):
            return next((one for one in (held, twin) if one in own), None)
        return None if twin is held else twin  # a function is not copied

    if isinstance(hook, nn.Module):
        return of_copy(hook)
    if isinstance(hook, functools.partial):
        inner = _own_hook(hook.func, twins, own)
        return None if inner is None else functools.partial(inner, *hook.args, **hook.keywords)
    if isinstance(hook, types.MethodType):
        owner = of_copy(hook.__self__)
        return None if owner is None else types.MethodType(hook.__func__, owner)
    contents: list[Any] = [cell.cell_contents for cell in getattr(hook, "__closure__", None) or ()]
    copies = {index: of_copy(held) for index, held in enumerate(contents) if not isinstance(held, _PLAIN)}
    if not copies or any(copied is None for copied in copies.values()):
        return None
    contents = [copies.get(index, held) for index, held in enumerate(contents)]
    closure = tuple(types.CellType(content) for content in contents)
    return types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, closure)


def _watch(twin: nn.Module, result: Probe, twins: Mapping[int, Any]) -> list[str]:
    """Registers hooks that record every call, and removes hooks that do not belong to the network.

    Returns:
        a list that holds the paths of the modules that are running, the innermost last.
    """
    formats: dict[torch.Size, bool] = {}  # channels last: of the last layer of a known format that gave this shape
    running: list[str] = []
    makers: dict[int, str] = {}  # by the id of the output, which stays valid because the calls hold the outputs

    def enter(path: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        running.append(path)

    def leave(path: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()
        channels_last = False
        if isinstance(output, Tensor):
            if type_before_parametrizations(module) in _CHANNELS_LAST:
                formats[output.shape] = True
            elif isinstance(module, _CHANNELS_FIRST):
                formats[output.shape] = False
            channels_last = formats.get(output.shape, False)
        kept = list(output) if isinstance(output, list) else output  # the network may empty the list later
        if not module._modules:
            makers[id(output)] = path
        call = Call(arguments, kept, channels_last, len(result.sums), makers.get(id(output), ""))
        result.calls.setdefault(path, []).append(call)

    own = set(twin.modules())
    for module in own:
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            kept = {number: _own_hook(hook, twins, own) for number, hook in hooks.items()}
            hooks.clear()
            hooks.update((number, hook) for number, hook in kept.items() if hook is not None)
    for path, module in modules_by_path(twin):
        if isinstance(module, torch.jit.ScriptModule):
            continue
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
        if func in CHANGES and output is not args[0]:
            self.result.changes.append((args[0], output))
        if func in (torch.cat, torch.concat, torch.concatenate):
            self.result.concatenations.append((output, list(args[0] if args else kwargs["tensors"])))
        return output
