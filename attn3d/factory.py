"""From a name to a mechanism."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from attn3d import mechanisms
from attn3d.arguments import check_options, nearest, read_spec

AttentionSpec = str | Sequence[Any] | Callable[..., nn.Module]
_Maker = TypeVar("_Maker", bound=Callable[..., nn.Module])

_REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "se": mechanisms.SqueezeExcitation,
    "eca": mechanisms.ECA,
    "cbam": mechanisms.CBAM,
    "bam": mechanisms.BAM,
    "coord": mechanisms.CoordinateAttention,
    "sk": mechanisms.SelectiveKernel,
    "gc": mechanisms.GlobalContext,
    "non_local": mechanisms.NonLocal,
    "mhsa": mechanisms.MultiHeadSelfAttention,
    "danet": mechanisms.DualAttention,
}


def list_attention() -> list[str]:
    """The registered names, in the order of their registration."""
    return list(_REGISTRY)


def register_attention(name: str) -> Callable[[_Maker], _Maker]:
    """A decorator that registers a mechanism of one's own.

    Args:
        name: an identifier that is not taken.

    Returns:
        a decorator for a class or function ``(spatial_dims, channels, **options)`` that gives a module
        (B, C, *S) -> (B, C, *S).

    Raises:
        ValueError: when the name is taken, or is no identifier.

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
    if name in _REGISTRY:
        raise ValueError(f"`name` {name!r} is taken by {_REGISTRY[name].__qualname__}")

    def add(maker: _Maker) -> _Maker:
        _REGISTRY[name] = maker
        return maker

    return add


def find(spec: AttentionSpec) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The class or function that a spec names, and its options.

    Raises:
        TypeError: when ``spec`` is no spec.
        ValueError: when the name is unknown, naming the nearest.
    """
    if callable(spec):
        return spec, {}
    if isinstance(spec, Sequence) and len(spec) == 2 and callable(spec[0]):
        return spec[0], dict(spec[1])
    name, options = read_spec("spec", spec)
    if name not in _REGISTRY:
        raise ValueError(f"`spec` names no registered attention: {name!r}; {nearest(name, _REGISTRY)}")
    return _REGISTRY[name], options


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
