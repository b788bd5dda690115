"""The attention classes of other libraries, and the classes that determine the positions of tokens.

A class is identified by its library and name, such as "monai.SABlock". Subclasses are recognized too.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attn3d.capture import modules_by_path
from attn3d.networks.own import monai, primus
from attn3d.networks.own.tokens import Layout, Reader, TokenLayout
from attn3d.networks.places import innermost, is_inserted

READERS = monai.READERS | primus.READERS
LAYOUTS = monai.LAYOUTS | primus.LAYOUTS


@dataclass(frozen=True)
class OwnAttention:
    """An attention module of a network, and the module (itself or a parent) that determines its token positions."""

    module: nn.Module
    reader: Reader
    host: nn.Module
    layout: Layout

    def tokens(self, *args: Any, **kwargs: Any) -> TokenLayout:
        """Returns the token positions, given the arguments of the host."""
        return self.layout(self.host, next(iter(_arguments(self.host, args, kwargs).values())))

    def weights(self, tokens: TokenLayout, queries: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the weights, given the arguments of the module."""
        return self.reader(self.module, tokens, queries, **_arguments(self.module, args, kwargs))


def own_attention(network: nn.Module) -> dict[str, OwnAttention]:
    """Returns the attention modules of a network by path, except those whose token positions are unknown."""
    found, hosts = {}, {}
    for path, module in modules_by_path(network):
        if is_inserted(path):
            continue
        layout, reader = _look_up(module, LAYOUTS), _look_up(module, READERS)
        if layout is not None:
            hosts[path] = module, layout
        if reader is not None and (host := innermost(hosts, path)) is not None:
            found[path] = OwnAttention(module, reader, *hosts[host])
    return found


def _look_up(module: nn.Module, table: dict[str, Any]) -> Any:
    names = (f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by the names of the module's parameters, in their order."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
