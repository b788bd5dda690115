"""The registry as a MONAI layer factory."""

from collections.abc import Callable
from typing import Any

from monai.networks.layers.factories import LayerFactory
from torch import nn

from attn3d.factory import create_attention, find
from attn3d.mechanisms.registry import REGISTRY, list_attention


class _AttentionFactory(LayerFactory):
    """MONAI's syntax ``Attention["cbam", 3](channels=64)`` for the mechanisms in attn3d's registry.

    Names that are registered with `attn3d.register_attention` are available immediately, in upper or lower case as in
    MONAI.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(list_attention())

    def get_constructor(self, factory_name: str, *args: Any) -> Callable[..., nn.Module]:
        spec = _registered(factory_name)
        find(spec, "name")
        if len(args) != 1:
            raise ValueError(f"Attention[name, spatial_dims] must have one number of dimensions, got {args}")

        def construct(channels: int, **options: Any) -> nn.Module:
            return create_attention(spec, spatial_dims=args[0], channels=channels, **options)

        return construct

    def __contains__(self, name: str) -> bool:
        return _registered(name) in REGISTRY

    def __getattr__(self, key: str) -> Any:
        return key if key in self else super().__getattr__(key)


def _registered(name: str) -> str:
    """Returns the registered name that equals ``name``, or equals it apart from case; ``name`` if there is none."""
    if name in REGISTRY:
        return name
    return {registered.lower(): registered for registered in REGISTRY}.get(str(name).lower(), name)


Attention = _AttentionFactory(name="Attention", description="attention modules (B, C, *S) -> (B, C, *S)")
