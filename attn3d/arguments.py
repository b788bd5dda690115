"""One way to say what is wrong with an argument, and one way to read a spec.

A spec is MONAI's form of saying which layer is wanted: a name, or a name and its options, ``"batch"`` or
``("group", {"num_groups": 8})``. Configurations in YAML and JSON have lists where Python has tuples, so both
are read.
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Spec = str | Sequence[Any]
MemoryBudget = int | str | None

# What a caller gives by position, and no spec as an option.
FIXED = ("self", "spatial_dims", "channels", "normalized_shape", "heads", "head_dim")

_UNITS = {
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names as a sentence, led by the one nearest to ``name`` where one is near."""
    known = list(known)
    spelt = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), spelt, n=1)
    suggestion = f"did you mean {spelt[close[0]]!r}? " if close else ""
    return f"{suggestion}available: {', '.join(known)}"


def one_of(argument: str, value: Any, known: Iterable[Any]) -> Any:
    """``value`` if it is among ``known``.

    Raises:
        ValueError: otherwise, naming the argument, its value and the nearest known one.
    """
    known = list(known)
    if value not in known:
        raise ValueError(f"`{argument}` got {value!r}; {nearest(str(value), map(str, known))}")
    return value


def positive_integer(argument: str, value: Any) -> int:
    """``value`` if it is an integer of at least 1.

    Raises:
        TypeError: when it is no integer.
        ValueError: when it is below 1.
    """
    return _integer_from(1, argument, value)


def natural_number(argument: str, value: Any) -> int:
    """``value`` if it is an integer of at least 0.

    Raises:
        TypeError: when it is no integer.
        ValueError: when it is below 0.
    """
    return _integer_from(0, argument, value)


def _integer_from(least: int, argument: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"`{argument}` must be at least {least}, got {value}")
    return value


def boolean(argument: str, value: Any) -> bool:
    """``value`` if it is true or false.

    Raises:
        TypeError: otherwise.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be True or False, got {value!r}")
    return value


def per_axis(argument: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """One positive integer for every axis: an integer is repeated, a sequence must have one for each.

    Raises:
        TypeError: when an entry is no integer.
        ValueError: when an entry is below 1, or their number is not ``spatial_dims``.
    """
    if not isinstance(value, int | Sequence) or isinstance(value, str | bool):
        raise TypeError(f"`{argument}` must be an integer or one for each of {spatial_dims} axes, got {value!r}")
    values = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(values) != spatial_dims:
        raise ValueError(f"`{argument}` must be an integer or one for each of {spatial_dims} axes, got {value}")
    return tuple(positive_integer(argument, entry) for entry in values)


def odd_per_axis(argument: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """As `per_axis`, for kernels that must be centred on a voxel.

    Raises:
        TypeError: when an entry is no integer.
        ValueError: when an entry is even or below 1, or their number is not ``spatial_dims``.
    """
    values = per_axis(argument, value, spatial_dims)
    if any(entry % 2 == 0 for entry in values):
        raise ValueError(f"`{argument}` must be odd, got {value}")
    return values


def positive_numbers(argument: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """So many positive numbers: one is repeated, a sequence must have as many.

    Raises:
        TypeError: when an entry is no number.
        ValueError: when an entry is not positive and finite, or their number is not ``count``.
    """
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * count
    if not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in values):
        raise TypeError(f"`{argument}` must be a number{f' or {count}' if count > 1 else ''}, got {value!r}")
    if len(values) != count or not all(0.0 < entry < math.inf for entry in values):
        raise ValueError(f"`{argument}` must be positive{f', one or {count}' if count > 1 else ''}, got {value!r}")
    return tuple(map(float, values))


def probability(argument: str, value: float) -> float:
    """``value`` if it lies in [0, 1).

    Raises:
        TypeError: when it is no number.
        ValueError: when it lies outside.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{argument}` must be a number in [0, 1), got {value!r}")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{argument}` must be in [0, 1), got {value}")
    return float(value)


def read_spec(argument: str, spec: Spec) -> tuple[str, dict[str, Any]]:
    """``"name"`` or ``("name", {options})`` as a name and a dictionary of options.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Sequence) and len(spec) in (1, 2) and isinstance(spec[0], str):
        options = spec[1] if len(spec) == 2 else {}
        if isinstance(options, Mapping) and all(isinstance(key, str) for key in options):
            return spec[0], dict(options)
    raise TypeError(f'`{argument}` must be a name or ("name", {{options}}), got {spec!r}')


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses an option that ``function`` does not take.

    Raises:
        TypeError: naming the option and the nearest one that is taken.
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in FIXED]
    for name in options:
        if name not in known:
            raise TypeError(f"{what} has no option `{name}`; {nearest(name, known)}")


def read_bytes(argument: str, value: MemoryBudget) -> int | None:
    """A number of bytes from a number, ``"2GiB"`` or None.

    Raises:
        TypeError: when it is none of these.
        ValueError: when it is a text that gives no bytes, or not positive.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if not match or match[2].upper() not in _UNITS:
            raise ValueError(f'`{argument}` must be bytes, such as "512MiB" or "2GiB", got {value!r}')
        value = int(float(match[1]) * _UNITS[match[2].upper()])
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'`{argument}` must be a number of bytes, a text such as "2GiB", or None, got {value!r}')
    if value < 1:
        raise ValueError(f"`{argument}` must be positive, got {value}")
    return value
