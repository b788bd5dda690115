"""The registry of attention classes of other libraries, and of classes that determine the positions of tokens.

A class is identified by its library and name, such as "monai.SABlock". Subclasses are recognized too.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attn3d.networks.own.tokens import Tokens
from attn3d.networks.places import is_inserted

Reader = Callable[..., dict[str, Tensor]]
Layout = Callable[[nn.Module, Tensor], Tokens]

_READERS: dict[str, Reader] = {}
_LAYOUTS: dict[str, Layout] = {}


def register_reader(name: str) -> Callable[[Reader], Reader]:
    """A decorator that registers a function which reads the weights of an attention module.

    The function is called before each forward pass of the module as ``(module, tokens, queries, *arguments)``, with the
    `Tokens`, the flat indices of the chosen voxels on their grid, and the arguments of the module. It returns weights
    like ``attention_weights`` of a mechanism.
    """
    return lambda reader: _READERS.setdefault(name, reader)


def register_layout(*names: str) -> Callable[[Layout], Layout]:
    """A decorator that registers a function which returns token positions, ``(module, first argument) -> Tokens``."""

    def register(layout: Layout) -> Layout:
        _LAYOUTS.update(dict.fromkeys(names, layout))
        return layout

    return register


@dataclass(frozen=True)
class OwnAttention:
    """An attention module of a network, and the module (itself or a parent) that determines its token positions."""

    module: nn.Module
    reader: Reader
    host: nn.Module
    layout: Layout

    def tokens(self, *args: Any, **kwargs: Any) -> Tokens:
        """Returns the token positions, given the arguments of the host."""
        return self.layout(self.host, next(iter(_arguments(self.host, args, kwargs).values())))

    def weights(self, tokens: Tokens, queries: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the weights, given the arguments of the module."""
        return self.reader(self.module, tokens, queries, **_arguments(self.module, args, kwargs))


def own_attention(network: nn.Module) -> dict[str, OwnAttention]:
    """Returns the attention modules of a network by path, except those whose token positions are unknown."""
    found, hosts = {}, {}
    for path, module in network.named_modules():
        if is_inserted(path):
            continue
        layout, reader = _look_up(module, _LAYOUTS), _look_up(module, _READERS)
        if layout is not None:
            hosts[path] = module, layout
        if reader is None:
            continue
        around = [host for host in hosts if not host or path == host or path.startswith(f"{host}.")]
        if around:
            found[path] = OwnAttention(module, reader, *hosts[max(around, key=len)])
    return found


def _look_up(module: nn.Module, table: dict[str, Any]) -> Any:
    names = (f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by the names of the module's parameters, in their order."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
