"""Checks of arguments with uniform error messages, lists of names in messages, and parsing of specs.

A spec selects a layer as in MONAI: a name, or a name and options, ``"batch"`` or ``("group", {"num_groups": 8})``.
Lists are accepted in place of tuples, since YAML and JSON have no tuples.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Spec = str | Sequence[Any]
MemoryBudget = int | str | None

_UNITS = {
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known names as a sentence, which starts with the closest match to ``name`` if there is one."""
    known = list(known)
    by_lower_case = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    suggestion = f"did you mean {by_lower_case[close[0]]!r}? " if close else ""
    return f"{suggestion}available: {', '.join(known)}"


def one_of(argument: str, value: Any, known: Iterable[Any]) -> Any:
    """Returns ``value``.

    Raises:
        ValueError: if it is not one of ``known``; the message gives the closest match.
    """
    known = list(known)
    if value not in known:
        raise ValueError(f"`{argument}` got {value!r}; {nearest(str(value), map(str, known))}")
    return value


def of_python(value: Any) -> Any:
    """Returns a number of NumPy or PyTorch as one of Python, and arrays and sequences as tuples of such numbers.

    All else is returned as it is. Other numbers than Python's could not be scripted, and arrays not hashed.
    """
    if type(value) in (int, float, bool, str):  # first, since a compiler cannot look for attributes of its numbers
        return value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(of_python(entry) for entry in value)
    return value


def positive_integer(argument: str, value: Any) -> int:
    """Returns ``value`` as an integer of Python.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    return _integer_from(1, argument, value)


def natural_number(argument: str, value: Any) -> int:
    """Returns ``value`` as an integer of Python.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 0.
    """
    return _integer_from(0, argument, value)


def _integer_from(least: int, argument: str, value: Any) -> int:
    value = of_python(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"`{argument}` must be at least {least}, got {value}")
    return value


def nonnegative_number(argument: str, value: Any) -> float:
    """Returns ``value`` as a number of Python.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is negative or not finite.
    """
    return _number_below(math.inf, argument, value, "a finite number of at least 0")


def probability(argument: str, value: Any) -> float:
    """Returns ``value`` as a number of Python.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not in [0, 1).
    """
    return _number_below(1.0, argument, value, "a number in [0, 1)")


def _number_below(limit: float, argument: str, value: Any, allowed: str) -> float:
    value = of_python(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{argument}` must be {allowed}, got {value!r}")
    if not 0.0 <= value < limit:
        raise ValueError(f"`{argument}` must be {allowed}, got {value}")
    return float(value)


def boolean(argument: str, value: Any) -> bool:
    """Returns ``value`` as a boolean of Python.

    Raises:
        TypeError: if it is not a boolean.
    """
    value = of_python(value)
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be True or False, got {value!r}")
    return value


def per_axis(argument: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Returns one positive integer per axis; a single integer is repeated.

    Raises:
        TypeError: if an entry is not an integer.
        ValueError: if an entry is below 1, or the number of entries is not ``spatial_dims``.
    """
    given = of_python(value)
    if not isinstance(given, int | tuple) or isinstance(given, bool):
        raise TypeError(f"`{argument}` must be an integer or one for each of {spatial_dims} axes, got {given!r}")
    values = (given,) * spatial_dims if isinstance(given, int) else given
    if len(values) != spatial_dims:
        raise ValueError(f"`{argument}` must be an integer or one for each of {spatial_dims} axes, got {given}")
    return tuple(positive_integer(argument, entry) for entry in values)


def odd_per_axis(argument: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Returns one odd positive integer per axis, for kernels that must be centred on a voxel.

    Raises:
        TypeError: if an entry is not an integer.
        ValueError: if an entry is even or below 1, or the number of entries is not ``spatial_dims``.
    """
    values = per_axis(argument, value, spatial_dims)
    if any(entry % 2 == 0 for entry in values):
        raise ValueError(f"`{argument}` must be odd, got {of_python(value)}")
    return values


def positive_numbers(argument: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Returns ``count`` positive numbers; a single number is repeated.

    Raises:
        TypeError: if an entry is not a number.
        ValueError: if an entry is not positive and finite, or the number of entries is not ``count``.
    """
    given = of_python(value)
    values = given if isinstance(given, tuple) else (given,) * count
    if not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in values):
        allowed = f"a number or {count}" if count > 1 else "a number"
        raise TypeError(f"`{argument}` must be {allowed}, got {given!r}")
    if len(values) != count or not all(0.0 < entry < math.inf for entry in values):
        allowed = f"positive, one or {count}" if count > 1 else "positive"
        raise ValueError(f"`{argument}` must be {allowed}, got {given!r}")
    return tuple(float(entry) for entry in values)


def voxels_on(grid: Sequence[int], voxels: Any) -> list[tuple[int, ...]]:
    """Returns positions on a grid, as integers of Python; for None, the central one.

    Raises:
        ValueError: if ``voxels`` is not a list of at least one position on the grid.
    """
    center = tuple(size // 2 for size in grid)
    given = (center,) if voxels is None else of_python(voxels)
    if not isinstance(given, tuple) or not given or not all(isinstance(voxel, tuple) for voxel in given):
        raise ValueError(f"`voxels` must be a list of positions, such as [{center}], got {voxels!r}")
    for voxel in given:
        if len(voxel) != len(grid) or not all(place in range(size) for place, size in zip(voxel, grid, strict=True)):
            raise ValueError(f"`voxels` must lie on the grid {tuple(grid)}, got {voxel}")
    return [tuple(map(int, voxel)) for voxel in given]


def read_spec(argument: str, spec: Spec) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options of a spec, ``"name"`` or ``("name", {options})``.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Sequence) and len(spec) in (1, 2) and isinstance(spec[0], str):
        options = spec[1] if len(spec) == 2 else {}
        if isinstance(options, Mapping) and all(isinstance(key, str) for key in options):
            return spec[0], dict(options)
    raise TypeError(f'`{argument}` must be a name or ("name", {{options}}), got {spec!r}')


def spec_words(spec: Spec) -> str:
    """Returns a spec as text, such as ``cbam (reduction=8)``."""
    name, options = read_spec("spec", spec)
    return f"{name} ({', '.join(f'{key}={value}' for key, value in options.items())})" if options else name


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any], positional: int = 0) -> None:
    """Checks that ``function`` has all options, and that no option without a default is missing.

    Args:
        what: description of the function for the errors.
        function: a class or a function, also in a `functools.partial`, whose options are checked too.
        options: the options that a user gave.
        positional: number of its first arguments, which are not options.

    Raises:
        TypeError: if an option is unknown, where the message gives the closest match, or missing.
    """
    while isinstance(function, functools.partial):  # it has no signature if an option is misspelt
        options, positional = {**function.keywords, **options}, positional + len(function.args)
        function = function.func
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    first = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY][:positional]
    known = {
        name: each for name, each in parameters.items() if name not in first and each.kind is not each.VAR_POSITIONAL
    }
    for name in options:
        if name not in known:
            raise TypeError(f"{what} has no option `{name}`; {nearest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise TypeError(f"{what} needs the option `{name}`")


def read_bytes(argument: str, value: MemoryBudget) -> int | None:
    """Returns a number of bytes, given as a number or a string such as ``"2GiB"``. None is returned as it is.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the string cannot be parsed, or the number is not positive.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if not match or match[2].upper() not in _UNITS:
            raise ValueError(f'`{argument}` must be bytes, such as "512MiB" or "2GiB", got {value!r}')
        value = int(float(match[1]) * _UNITS[match[2].upper()])
    value = of_python(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'`{argument}` must be a number of bytes, a string such as "2GiB", or None, got {value!r}')
    if value < 1:
        raise ValueError(f"`{argument}` must be positive, got {value}")
    return value


def first_few(names: Sequence[str], most: int) -> str:
    """Returns the first names as text, and the number of the others: ``a, b and 3 more``."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
