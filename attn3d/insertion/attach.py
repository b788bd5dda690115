"""Attaches modules to tensors of a network without changing its class or state dict keys.

A plain ``nn.Sequential`` gets a last child; any other module gets a child and a hook that calls it. Hooks are
module-level functions, so that they can be pickled, with type annotations, so that they can be scripted. Their handles
are stored in the child: an unpickled handle prevents later hooks from reusing its id.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attn3d.capture import modules_by_path, unwrapped
from attn3d.insertion.containers import (
    Inserted,
    InsertedAtSkip,
    InsertedBeside,
    InsertedInConcatenation,
    InsertedInSum,
    InsertedItems,
    Record,
)
from attn3d.insertion.sums import close_sums, open_sums
from attn3d.networks.places import INSERTED, Place

# The hooks. Scripting reads the types of the arguments of the module's forward in the hook's `input`. Further arguments
# are kept by adding a slice, because TorchScript cannot unpack a tuple.


def _attend_output(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_output_of_two(self: Any, input: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_output_of_optional(self: Any, input: tuple[Tensor, Tensor | None], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_input(self: Any, input: tuple[Tensor]) -> tuple[Tensor]:
    return (self.attn3d_input(input[0]),) + input[1:]


def _attend_first(self: Any, input: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return (self.attn3d_input(input[0]),) + input[1:]


def _attend_first_of_optional(self: Any, input: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return (self.attn3d_input(input[0]),) + input[1:]


def _attend_second(self: Any, input: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return input[:1] + (self.attn3d_skip(input[1], input[0]),) + input[2:]


def _attend_optional(self: Any, input: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    skip = input[1]
    if skip is not None:
        skip = self.attn3d_skip(skip, input[0])
    return input[:1] + (skip,) + input[2:]


def _attend_joined(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    x = input[0]
    beside = output[:, x.shape[1] :]
    return torch.cat([self.attn3d_joined(x, beside), beside], 1)


def _attend_concatenated(self: Any, input: tuple[Tensor]) -> tuple[Tensor]:
    return (self.attn3d_concatenated(input[0]),) + input[1:]


def _attend_concatenated_first(self: Any, input: tuple[Tensor]) -> tuple[Tensor]:
    return (self.attn3d_concatenated_first(input[0]),) + input[1:]


def _attend_items(self: Any, input: tuple[Tensor], output: list[Tensor]) -> list[Tensor]:
    return self.attn3d_items(output)


def _leave_skip(self: Any, input: tuple[Any, ...], output: Any) -> Any:  # one map, or a list of them
    return self.attn3d_summed(output)


def _attend_kernel(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attn3d_kernel(input[0], output)


def container_at(network: nn.Module, place: Place, channels: int, reader: str) -> Inserted:
    """Returns the container of the mechanisms at ``place``, and creates it if needed.

    Args:
        network: the network.
        place: a place in it.
        channels: number of channels of its map.
        reader: for summed skips, path of the module that contains the stage and the sum.
    """
    host, name = host_of(network, place), INSERTED[place.hook]
    if name not in host._modules:
        _attach(host, place, channels)
    if place.hook == "summed":
        _see_sums(unwrapped(network.get_submodule(reader)), host._modules[name])
    child = host._modules[name]
    return child.at(cast(int, place.index)) if isinstance(child, InsertedItems) else child


def taken(network: nn.Module, place: Place) -> str:
    """Returns why there cannot be a container at ``place``, because the network has something else there, or ""."""
    host, name = host_of(network, place), INSERTED[place.hook]
    child = getattr(host, name, None)
    if not hasattr(host, name) or isinstance(child, (Inserted, InsertedItems)):
        return ""
    if _is_copied_by_peft(child):
        return "has attention that PEFT has wrapped; insert all attention before you use PEFT"
    return f"has its own attribute `{name}`, a name that inserted attention needs; rename it"


def _is_copied_by_peft(module: Any) -> bool:
    """Returns whether this is PEFT's wrapper of a module in `modules_to_save`, of which it runs a copy."""
    names = ("original_module", "modules_to_save")
    return isinstance(module, nn.Module) and all(name in module._modules for name in names)


def containers(network: nn.Module, aliases: bool = False) -> Iterator[tuple[str, Inserted]]:
    """Yields all containers that run, by path; with ``aliases``, shared modules are yielded once for every path."""
    wrappers = filter(_is_copied_by_peft, network.modules())
    replaced = {part for wrapper in wrappers for part in wrapper.get_submodule("original_module").modules()}
    for path, module in modules_by_path(network, aliases):
        if isinstance(module, Inserted) and module not in replaced:
            yield path, module


def inserted_by_network(module: nn.Module) -> dict[str | None, list[tuple[Record, nn.Module]]]:
    """Returns all records and their mechanisms, by the path of the module that was passed to `insert_attention`.

    The path is "" for ``module`` itself, and None if ``module`` is a part of the one that was passed.
    """
    paths: dict[Inserted, list[str]] = {}
    for path, container in containers(module, aliases=True):
        paths.setdefault(container, []).append(path)
    entries = []
    for container, names in paths.items():
        for record, mechanism in zip(container.records, container, strict=True):
            networks = dict.fromkeys(network for name in names for network in _paths_of_network(name, record.site))
            entries.append((record, mechanism, networks))
    common = Counter(network for *_, networks in entries for network in networks)
    found: dict[str | None, list[tuple[Record, nn.Module]]] = {}
    for record, mechanism, networks in entries:
        # Names may be repeated, as in "conv.conv", and modules may have two paths: the one of most mechanisms is taken.
        network = max(networks, key=common.__getitem__, default=None)
        found.setdefault(network, []).append((record, mechanism))
    return found


def _paths_of_network(container: str, site: str) -> list[str]:
    """Returns the possible fronts of a container's path, before the path of its site.

    Modules that were wrapped after the insertion have further names between those of the site.
    """
    entry = container.rpartition(".")[2]  # of a list
    names = f".{container}".rpartition(".attn3d")[0].split(".")[1:]
    path = site.partition(":")[2].removesuffix(f"[{entry}]")
    if not path:  # a site of the network itself
        return [".".join(names)]
    first, *rest = path.split(".")
    fronts = []
    for start in reversed(range(len(names))):
        left = iter(names[start + 1 :])
        if names[start] == first and all(name in left for name in rest):
            fronts.append(".".join(names[:start]))
    return fronts


def detach(network: nn.Module) -> None:
    """Removes everything that was inserted."""
    for host in list(network.modules()):
        if isinstance(host, torch.jit.ScriptModule):
            continue  # it takes no hooks, and its children have no names
        for name in set(INSERTED.values()) & set(host._modules):
            child: Any = host._modules[name]
            child = child.original_module if _is_copied_by_peft(child) else child
            if isinstance(child, (Inserted, InsertedItems)):
                for handle in child.handles:
                    handle.remove()
                del host._modules[name]


def is_plain_sequence(module: nn.Module) -> bool:
    """Returns whether a new last child of ``module`` would run on its output."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def host_of(network: nn.Module, place: Place) -> Any:
    """Returns the module that gets the container at ``place``."""
    host: Any = unwrapped(network.get_submodule(place.path))
    while (place.hook == "first" or place.is_concatenated) and is_plain_sequence(host):
        host = unwrapped(host[0])  # it has the same input, and the sequence would run a new child of its own
    return host


def _attach(host: nn.Module, place: Place, channels: int) -> None:
    """Adds a container to ``host`` and the hook that calls it. A plain sequence calls its last child without a hook."""
    before, after = host.register_forward_pre_hook, host.register_forward_hook
    hook: RemovableHandle | None = None
    child: Inserted | InsertedItems
    match place.hook:
        case "output":
            child = Inserted()
            if not is_plain_sequence(host):
                hook = after(_by_forward(host, _attend_output, _attend_output_of_two, _attend_output_of_optional))
        case "first":
            child = Inserted()
            hook = before(_by_forward(host, _attend_input, _attend_first, _attend_first_of_optional))
        case "second":
            child = InsertedAtSkip()
            hook = before(_by_forward(host, _attend_second, _attend_second, _attend_optional))
        case "joined":
            child, hook = InsertedAtSkip(), after(_attend_joined, prepend=True)
        case "concatenated":
            child, hook = InsertedInConcatenation(channels, first=False), before(_attend_concatenated)
        case "concatenated_first":
            child, hook = InsertedInConcatenation(channels, first=True), before(_attend_concatenated_first)
        case "item":
            child, hook = InsertedItems(Inserted), after(_attend_items, prepend=True)
        case "kernel":
            child, hook = InsertedBeside(), after(_attend_kernel, prepend=True)
        case "summed":
            child = InsertedInSum() if place.index is None else InsertedItems(InsertedInSum)
            if place.index is not None or not is_plain_sequence(host):
                hook = after(_leave_skip)
    host.add_module(INSERTED[place.hook], child.train(host.training))
    if hook is not None:
        child.handles.append(hook)
    if place.hook == "output":
        _leave_skip_last(host)


def _see_sums(reader: nn.Module, child: Inserted | InsertedItems) -> None:
    """Registers the hooks of the module that contains the sums, once for all skips."""
    if open_sums not in reader._forward_pre_hooks.values():
        child.handles.append(reader.register_forward_pre_hook(open_sums, prepend=True))
        # First, since a hook may leave the output as a skip of the module around it.
        child.handles.append(reader.register_forward_hook(close_sums, prepend=True, always_call=True))


def _leave_skip_last(host: nn.Module) -> None:
    """Moves the skip's hook to the end: the skip is the output of a stage including what was inserted there."""
    child = host._modules.get(INSERTED["summed"])
    if isinstance(child, InsertedInSum):
        host._modules[INSERTED["summed"]] = host._modules.pop(INSERTED["summed"])
    hooks: Any = host._forward_hooks
    for number, hook in list(hooks.items()):
        if hook is _leave_skip:
            hooks.move_to_end(number)


def _by_forward(host: nn.Module, one: Callable, two: Callable, optional: Callable) -> Callable:
    """Returns the hook whose types match the forward of the host."""
    parameters = list(inspect.signature(host.forward).parameters.values())
    if len(parameters) < 2:
        return one
    return optional if any(word in str(parameters[1].annotation) for word in ("None", "Optional")) else two
