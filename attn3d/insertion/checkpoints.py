"""Loads checkpoints into networks with inserted attention."""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from attn3d.arguments import first_few
from attn3d.capture import plain_path, unwrapped
from attn3d.insertion.attach import containers

_OF_AVERAGED_MODEL = "n_averaged"  # the number of averaged states


def load_pretrained(net: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Loads a checkpoint that was saved before or after attention was inserted.

    Args:
        net: a network with inserted attention, which may be compiled.
        state_dict: state of the same network without attention, with the same attention or with part of it; also of
            this network compiled, or inside a wrapper, such as `DistributedDataParallel`, `AveragedModel` or a
            LightningModule. ``net`` may be such a wrapper, too.

    Returns:
        the keys of mechanisms that are not in the checkpoint; their parameters are unchanged.

    Raises:
        TypeError: if ``state_dict`` is not a state dictionary.
        ValueError: if other keys are missing, unknown or have another shape; the message lists the first ones. Nothing
            is loaded then.
    """
    net = unwrapped(net)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"`state_dict` must be a state dictionary, such as torch.load returns, got {state_dict!r:.80}")
    own = net.state_dict()
    metadata = getattr(state_dict, "_metadata", {})  # the versions of modules, which decide how old states are read
    prefix, own_prefix = wrapper_prefix(state_dict, own), wrapper_prefix(own, state_dict)
    if prefix:
        state_dict = {key: value for key, value in state_dict.items() if key in own or key != _OF_AVERAGED_MODEL}
    own_keys = {without_wrapper(key, own_prefix): key for key in own}
    own_paths = {without_wrapper(path, own_prefix): path for path, _ in net.named_modules(remove_duplicate=False)}
    state_dict = OrderedDict(_renamed(state_dict, prefix, own_keys, own))
    state_dict._metadata = dict(_renamed(metadata, prefix, own_paths, own_paths.values()))  # type: ignore[attr-defined]
    nested = {key: value for key, value in state_dict.items() if key not in own and isinstance(value, Mapping)}
    inside = [repr(key) for key, value in nested.items() if any(isinstance(one, Tensor) for one in value.values())]
    if inside:
        raise TypeError(
            f"`state_dict` must map names to tensors, got a checkpoint; give its entry {' or '.join(inside)}"
        )
    missing = [key for key in own if key not in state_dict and not (own_prefix and key == _OF_AVERAGED_MODEL)]
    given = [plain_path(key) for key in state_dict]
    new = []
    for path, container in containers(net, aliases=True):
        for name, _ in container.named_children():
            prefix = f"{path}.{name}."
            if not any(key.startswith(prefix) for key in given):
                new += [key for key in missing if plain_path(key).startswith(prefix)]
    faults = {
        "missing": [key for key in missing if key not in new],
        "unknown": [key for key in state_dict if key not in own],
        "of another shape": [
            key  # an extra state of a module may have no shape
            for key in state_dict
            if key in own and getattr(state_dict[key], "shape", None) != getattr(own[key], "shape", None)
        ],
    }
    if any(faults.values()):
        named = "; ".join(f"{fault}: {first_few(keys, 10)}" for fault, keys in faults.items() if keys)
        raise ValueError(f"`state_dict` is of another network than `net`. Keys {named}")
    net.load_state_dict(state_dict, strict=False)
    return new


def wrapper_prefix(keys: Collection[str], others: Collection[str]) -> str:
    """Returns the prefix that a wrapper adds to the keys of a network, such as "module." or "net."; "" without one.

    Of several, it is the one of most keys, then the shortest.

    Args:
        keys: the keys of the state of the wrapper.
        others: those of the network.
    """
    names = [without_wrapper(key) for key in keys if key != _OF_AVERAGED_MODEL]
    known = {without_wrapper(key) for key in others}
    if not known.isdisjoint(names):
        return ""
    dots = ((name, dot.end()) for name in names for dot in re.finditer(r"\.", name))
    found = Counter(name[:end] for name, end in dots if name[end:] in known)
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")


def without_wrapper(name: str, prefix: str = "") -> str:
    """Returns a key or path without the ``prefix`` of a wrapper and the names that `plain_path` leaves out."""
    return f"{plain_path(name)}.".removeprefix(prefix).strip(".")


def _renamed(
    entries: Mapping[str, Any], prefix: str, own: Mapping[str, str], kept: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Yields entries by the names that they have in the network. Those in ``kept`` have them already."""
    for name, value in entries.items():
        yield name if name in kept else own.get(without_wrapper(name, prefix), name), value
