"""Which class has attention of its own, and which says where its tokens lie.

A class is known by its library and its name, "monai.SABlock", and so are those that derive from it.
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
    """Says how the weights of an attention module are read.

    The function is called before each forward pass of the module, ``(module, tokens, queries, *arguments)``, with the
    `Tokens`, the flat indices of the chosen voxels on their grid, and what the module is called with. It gives weights
    in the form of a mechanism's ``attention_weights``.
    """
    return lambda reader: _READERS.setdefault(name, reader)


def register_layout(*names: str) -> Callable[[Layout], Layout]:
    """Says where the tokens of the attention in a module lie, ``(module, its first argument) -> Tokens``."""

    def register(layout: Layout) -> Layout:
        _LAYOUTS.update(dict.fromkeys(names, layout))
        return layout

    return register


@dataclass(frozen=True)
class OwnAttention:
    """An attention module of a network, and the module around it, or itself, that knows where its tokens lie."""

    module: nn.Module
    reader: Reader
    host: nn.Module
    layout: Layout

    def tokens(self, *args: Any, **kwargs: Any) -> Tokens:
        """Where the tokens lie, by what the host is called with."""
        return self.layout(self.host, next(iter(_arguments(self.host, args, kwargs).values())))

    def weights(self, tokens: Tokens, queries: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The weights, by what the module is called with."""
        return self.reader(self.module, tokens, queries, **_arguments(self.module, args, kwargs))


def own_attention(network: nn.Module) -> dict[str, OwnAttention]:
    """The attention modules of a network by path, those aside whose tokens lie nobody knows where."""
    found, hosts = {}, {}
    for path, module in network.named_modules():
        if is_inserted(path):
            continue
        if (layout := _look_up(module, _LAYOUTS)) is not None:
            hosts[path] = module, layout
        if (reader := _look_up(module, _READERS)) is None:
            continue
        around = [host for host in hosts if not host or path == host or path.startswith(f"{host}.")]
        if around:
            found[path] = OwnAttention(module, reader, *hosts[max(around, key=len)])
    return found


def _look_up(module: nn.Module, table: dict[str, Any]) -> Any:
    names = (f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names of its parameters and in their order."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
