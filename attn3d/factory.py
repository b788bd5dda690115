"""From a name to a mechanism."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from attn3d.arguments import check_options, nearest, read_spec
from attn3d.mechanisms.registry import REGISTRY

AttentionSpec = str | Sequence[Any] | Callable[..., nn.Module]


def find(spec: AttentionSpec) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The class or function that a spec names, and its options.

    Raises:
        TypeError: when ``spec`` is no spec.
        ValueError: when the name is unknown, naming the nearest.
    """
    if callable(spec):
        return spec, {}
    if isinstance(spec, Sequence) and len(spec) == 2 and callable(spec[0]):
        return spec[0], dict(cast(Mapping[str, Any], spec[1]))
    name, options = read_spec("spec", spec)
    if name not in REGISTRY:
        raise ValueError(f"`spec` names no registered attention: {name!r}; {nearest(name, REGISTRY)}")
    return REGISTRY[name], options


def takes_signal(spec: AttentionSpec) -> bool:
    """Whether a mechanism is called with a gating signal beside its input, as its class attribute says."""
    return getattr(find(spec)[0], "takes_signal", False)


def create_attention(spec: AttentionSpec, *, spatial_dims: int, channels: int, **options: Any) -> nn.Module:
    """Makes an attention module from its name.

    Args:
        spec: a registered name, ``(name, {options})``, or a class or function
            ``(spatial_dims, channels, **options)``.
        spatial_dims: 1, 2 or 3.
        channels: channels of its input.
        options: of the mechanism; they win over those of the spec.

    Returns:
        a module (B, C, *S) -> (B, C, *S).

    Raises:
        TypeError: when ``spec`` is no spec, or an option is unknown, naming the nearest.
        ValueError: when the name is unknown, naming the nearest, or a value is out of range.

    Examples:
        >>> attn3d.create_attention(("cbam", {"reduction": 8}), spatial_dims=3, channels=64)
        CBAM(...)
    """
    maker, of_spec = find(spec)
    options = {**of_spec, **options}
    check_options(maker.__qualname__, maker, options)
    return maker(spatial_dims, channels, **options)
