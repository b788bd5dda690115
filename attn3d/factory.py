"""Creates mechanisms by name."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from attn3d.arguments import check_options, nearest, of_python, positive_integer, read_spec
from attn3d.attention import Pattern
from attn3d.attention.patterns import PATTERNS
from attn3d.mechanisms.registry import REGISTRY, list_attention

AttentionSpec = str | Sequence[Any] | Callable[..., nn.Module]


def find(spec: AttentionSpec, argument: str = "spec") -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Returns the class or function of a spec, and its options. Errors call the spec by the name of the argument.

    Raises:
        TypeError: if ``spec`` is not a spec.
        ValueError: if the name is unknown; the message gives the closest match.
    """
    if isinstance(spec, nn.Module):
        raise TypeError(
            f"`{argument}` must be a name, a class or a function, since every site gets its own module, got a"
            f" {type(spec).__name__}"
        )
    if callable(spec):
        return spec, {}
    if isinstance(spec, Sequence) and len(spec) == 2 and callable(spec[0]) and isinstance(spec[1], Mapping):
        return spec[0], dict(spec[1])
    name, options = read_spec(argument, spec)
    if name not in REGISTRY:
        raise ValueError(
            f"`{argument}` must be a registered mechanism, got {name!r}; {nearest(name, list_attention())}"
        )
    return REGISTRY[name], options


def declares(spec: AttentionSpec, attribute: str) -> bool:
    """Returns whether the class or function of a spec, also in a `functools.partial`, has a true ``attribute``.

    ``"takes_signal"``: the mechanism takes a gating signal in addition to its input. ``"averages_space"``: its weights
    depend only on means over space.
    """
    maker: Any = find(spec)[0]
    return bool(getattr(maker.func if isinstance(maker, functools.partial) else maker, attribute, False))


def plain_spec(spec: AttentionSpec, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns a spec and its options as plain data, which can be written as JSON.

    Registered classes become names, patterns ``[name, {options}]``, and numbers of NumPy and PyTorch those of Python. A
    class or function that is not registered is returned as it is, with its options.
    """
    maker, given = find(spec)
    given = {**given, **options}
    named = next((name for name, registered in REGISTRY.items() if registered is maker), None)
    return (maker, given) if named is None else (named, _plain(given))


def _plain(value: Any) -> Any:
    if isinstance(value, Pattern) and PATTERNS.get(value.name) is type(value):  # not a subclass without a name
        return [value.name, _plain(vars(value))]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return of_python(value)


def create_attention(spec: AttentionSpec, *, spatial_dims: int, channels: int, **options: Any) -> nn.Module:
    """Creates an attention module from its name.

    Args:
        spec: a registered name, ``(name, {options})``, or a class or function
            ``(spatial_dims, channels, **options)``.
        spatial_dims: 1, 2 or 3.
        channels: number of channels of its input.
        options: options of the mechanism, which override those in ``spec``.

    Returns:
        a module (B, C, *S) -> (B, C, *S).

    Raises:
        TypeError: if ``spec`` is not a spec or does not create a module, or an option is unknown.
        ValueError: if the name is unknown, or a value is out of range.

    Examples:
        >>> attn3d.create_attention(("cbam", {"reduction": 8}), spatial_dims=3, channels=64)
        CBAM(...)
    """
    maker, spec_options = find(spec)
    options = {**spec_options, **options}
    check_options(getattr(maker, "__qualname__", repr(maker)), maker, options, positional=2)
    attention = maker(spatial_dims, positive_integer("channels", channels), **options)
    if not isinstance(attention, nn.Module):
        raise TypeError(f"`spec` must create a torch.nn.Module, got {attention!r:.80}")
    return attention
