"""Loads checkpoints into networks with inserted attention."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from attn3d.arguments import first_few
from attn3d.capture import uncompiled
from attn3d.insertion.attach import containers


def load_pretrained(net: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Loads a checkpoint that was saved before or after attention was inserted.

    Args:
        net: a network with inserted attention, which may be compiled.
        state_dict: state of the same network without attention, with the same attention or with part of it; also of
            this network compiled or in `DataParallel` or `DistributedDataParallel`.

    Returns:
        the keys of mechanisms that are not in the checkpoint; their parameters are unchanged.

    Raises:
        TypeError: if ``state_dict`` is not a state dictionary.
        ValueError: if other keys are missing, unknown or have another shape; the message lists the first ones. Nothing
            is loaded then.
    """
    net = uncompiled(net)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"`state_dict` must be a state dictionary, such as torch.load returns, got {state_dict!r:.80}")
    own = net.state_dict()
    own_keys = {_without_wrappers(key): key for key in own}
    own_paths = {_without_wrappers(path): path for path, _ in net.named_modules(remove_duplicate=False)}
    metadata = getattr(state_dict, "_metadata", {})  # the versions of modules, which decide how old states are read
    state_dict = OrderedDict(_renamed(state_dict, own_keys, own))
    state_dict._metadata = dict(_renamed(metadata, own_paths, own_paths.values()))  # type: ignore[attr-defined]
    nested = {key: value for key, value in state_dict.items() if key not in own and isinstance(value, Mapping)}
    inside = [repr(key) for key, value in nested.items() if any(isinstance(one, Tensor) for one in value.values())]
    if inside:
        raise TypeError(
            f"`state_dict` must map names to tensors, got a checkpoint; give its entry {' or '.join(inside)}"
        )
    missing = [key for key in own if key not in state_dict]
    new = []
    for path, container in containers(net, aliases=True):
        for name, _ in container.named_children():
            prefix = f"{path}.{name}."
            if not any(key.startswith(prefix) for key in state_dict):
                new += [key for key in missing if key.startswith(prefix)]
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


def _without_wrappers(name: str) -> str:
    """Returns a key or path without the names that `torch.compile` and wrappers for parallel training add."""
    return f"{name}.".replace("_orig_mod.", "").removeprefix("module.").strip(".")


def _renamed(entries: Mapping[str, Any], own: Mapping[str, str], kept: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yields entries by the names that they have in the network. Those in ``kept`` have them already."""
    for name, value in entries.items():
        yield name if name in kept else own.get(_without_wrappers(name), name), value
