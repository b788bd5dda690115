"""Ways of putting modules behind a tensor of a network, so that the network stays what it is.

A plain ``nn.Sequential`` gets a last child, any other module a child and a hook that calls it; the class of the
network and every key of its state stay as they were. Hooks are functions of a module, so that they pickle, with
types, so that they script. Their handles stay with the child: a handle that is unpickled keeps the hooks that are
registered later from taking its number.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attn3d.insertion.containers import Inserted, InsertedBeside, InsertedDetour, InsertedItems, Passage
from attn3d.networks.places import INSERTED, Place

_CHILD = {
    "output": INSERTED,
    "first": f"{INSERTED}_input",
    "second": f"{INSERTED}_skip",
    "joined": f"{INSERTED}_skip",
    "item": f"{INSERTED}_skip",
    "detour": f"{INSERTED}_skip",
    "kernel": f"{INSERTED}_kernel",
}
_PASSAGE = f"{INSERTED}_passage"

# The hooks. Scripting reads the types of the arguments of the module's forward in the hook's `input`.


def _attend_output(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_output_of_two(self: Any, input: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_output_of_optional(self: Any, input: tuple[Tensor, Tensor | None], output: Tensor) -> Tensor:
    return self.attn3d(output)


def _attend_input(self: Any, input: tuple[Tensor]) -> tuple[Tensor]:
    return (self.attn3d_input(input[0]),)


def _attend_first(self: Any, input: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return self.attn3d_input(input[0]), input[1]


def _attend_first_of_optional(self: Any, input: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return self.attn3d_input(input[0]), input[1]


def _attend_second(self: Any, input: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return input[0], self.attn3d_skip(input[1])


def _attend_optional(self: Any, input: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    skip = input[1]
    if skip is not None:
        skip = self.attn3d_skip(skip)
    return input[0], skip


def _attend_joined(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    x = input[0]
    return torch.cat([self.attn3d_skip(x), output[:, x.shape[1] :]], 1)


def _attend_items(self: Any, input: tuple[Tensor], output: list[Tensor]) -> list[Tensor]:
    return self.attn3d_skip(output)


def _attend_detour(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attn3d_skip(output)


def _rejoin(self: Any, input: tuple[Any, ...]) -> tuple[Any, ...]:
    return self.attn3d_passage.read(), *input[1:]


def _attend_kernel(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attn3d_kernel(input[0], output)


def container_at(network: nn.Module, place: Place) -> Inserted:
    """What holds the mechanisms at ``place``, made where there is none yet."""
    host = network.get_submodule(place.path)
    name = _CHILD[place.tap]
    if name not in host._modules:
        _MAKERS[place.tap](network, host, place)
    child = host._modules[name]
    return child.at(place.index) if isinstance(child, InsertedItems) else child


def containers(network: nn.Module, aliases: bool = False) -> Iterator[tuple[str, Inserted]]:
    """Everything that was inserted, with its path, or with every path where modules have several."""
    for path, module in network.named_modules(remove_duplicate=not aliases):
        if isinstance(module, Inserted):
            yield path, module


def detach(network: nn.Module) -> None:
    """Takes out everything that was inserted."""
    for host in list(network.modules()):
        for name in set(_CHILD.values()) & set(host._modules):
            for handle in host._modules.pop(name).handles:
                handle.remove()
        host.__dict__.pop(_PASSAGE, None)


def is_plain_sequence(module: nn.Module) -> bool:
    """Whether a last child of ``module`` runs on its output."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _put(host: nn.Module, place: Place, child: Inserted | InsertedItems, *hooks: RemovableHandle) -> None:
    host.add_module(_CHILD[place.tap], child)
    child.handles.extend(hooks)


def _at_output(network: nn.Module, host: nn.Module, place: Place) -> None:
    if is_plain_sequence(host):
        _put(host, place, Inserted())
    else:
        hook = _by_forward(host, _attend_output, _attend_output_of_two, _attend_output_of_optional)
        _put(host, place, Inserted(), host.register_forward_hook(hook))
    _move_detour_last(host)


def _at_first(network: nn.Module, host: nn.Module, place: Place) -> None:
    hook = _by_forward(host, _attend_input, _attend_first, _attend_first_of_optional)
    _put(host, place, Inserted(), host.register_forward_pre_hook(hook))


def _at_second(network: nn.Module, host: nn.Module, place: Place) -> None:
    hook = _by_forward(host, _attend_second, _attend_second, _attend_optional)
    _put(host, place, Inserted(), host.register_forward_pre_hook(hook))


def _at_joined(network: nn.Module, host: nn.Module, place: Place) -> None:
    _put(host, place, Inserted(), host.register_forward_hook(_attend_joined, prepend=True))


def _at_item(network: nn.Module, host: nn.Module, place: Place) -> None:
    _put(host, place, InsertedItems(), host.register_forward_hook(_attend_items, prepend=True))


def _at_kernel(network: nn.Module, host: nn.Module, place: Place) -> None:
    _put(host, place, InsertedBeside(), host.register_forward_hook(_attend_kernel, prepend=True))


def _at_detour(network: nn.Module, host: nn.Module, place: Place) -> None:
    reader, passage = network.get_submodule(place.rejoin), Passage()
    setattr(reader, _PASSAGE, passage)
    _put(host, place, InsertedDetour(passage), reader.register_forward_pre_hook(_rejoin))
    if not is_plain_sequence(host):
        host._modules[_CHILD["detour"]].handles.append(host.register_forward_hook(_attend_detour))


def _move_detour_last(host: nn.Module) -> None:
    """The detour begins where the stage ends, after what was inserted into the stage."""
    child = host._modules.pop(_CHILD["detour"], None)
    if child is None:
        return
    host._modules[_CHILD["detour"]] = child
    if isinstance(child, InsertedDetour) and not is_plain_sequence(host):
        child.handles.pop().remove()
        child.handles.append(host.register_forward_hook(_attend_detour))


_MAKERS: dict[str, Callable[[nn.Module, nn.Module, Place], None]] = {
    "output": _at_output,
    "first": _at_first,
    "second": _at_second,
    "joined": _at_joined,
    "item": _at_item,
    "detour": _at_detour,
    "kernel": _at_kernel,
}


def _by_forward(host: nn.Module, one: Callable, two: Callable, optional: Callable) -> Callable:
    """The hook with the types of the host's forward."""
    parameters = list(inspect.signature(host.forward).parameters.values())
    if len(parameters) < 2:
        return one
    return optional if any(word in str(parameters[1].annotation) for word in ("None", "Optional")) else two
