"""The registry of mechanisms by name."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

_Maker = TypeVar("_Maker", bound=Callable[..., nn.Module])

REGISTRY: dict[str, Callable[..., nn.Module]] = {}


def list_attention() -> list[str]:
    """Returns the names of all registered mechanisms, sorted."""
    return sorted(REGISTRY)


def register_attention(name: str) -> Callable[[_Maker], _Maker]:
    """A decorator that registers a mechanism by name.

    Args:
        name: an identifier that is not registered yet.

    Returns:
        a decorator for a class or function ``(spatial_dims, channels, **options)`` that returns a module
        (B, C, *S) -> (B, C, *S).

    Raises:
        ValueError: if the name is already registered or not an identifier.

    Examples:
        >>> @attn3d.register_attention("mean_gate")
        ... class MeanGate(torch.nn.Module):
        ...     def __init__(self, spatial_dims, channels):
        ...         super().__init__()
        ...     def forward(self, x):
        ...         return x * x.mean(1, keepdim=True).sigmoid()
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"`name` must be an identifier, got {name!r}")
    if name in REGISTRY:
        owner = REGISTRY[name]
        raise ValueError(f"`name` {name!r} is already registered by {getattr(owner, '__qualname__', repr(owner))}")

    def add(maker: _Maker) -> _Maker:
        REGISTRY[name] = maker
        return maker

    return add
