"""The registry of network classes and their places.

A network is looked up by the method resolution order of its class, so that subclasses inherit places.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from attn3d.networks.inside import Staged, inside
from attn3d.networks.places import KINDS, Place

Stage = str | Place | Sequence[str | Place]
StagesByKind = Mapping[str, Sequence[Stage]]

_LIBRARIES = {  # modules that register sites and blocks, imported for the first network with a module of the library
    "monai": "attn3d.networks.monai",
    "dynamic_network_architectures": "attn3d.networks.nnunet",
}
_SITES: dict[type, Callable[[Any], StagesByKind]] = {}
_RUNS: dict[type, Callable[[Any, Tensor], Any]] = {}
_Find = TypeVar("_Find", bound=Callable[..., StagesByKind])


@overload
def register_sites(
    network: type[nn.Module], sites: None = None, *, run: Callable[[Any, Tensor], Any] | None = None
) -> Callable[[_Find], _Find]: ...
@overload
def register_sites(
    network: type[nn.Module],
    sites: StagesByKind | Callable[..., StagesByKind],
    *,
    run: Callable[[Any, Tensor], Any] | None = None,
) -> StagesByKind | Callable[..., StagesByKind]: ...
def register_sites(
    network: type[nn.Module],
    sites: Any = None,
    *,
    run: Callable[[Any, Tensor], Any] | None = None,
) -> Any:
    """Registers the sites of a network class and its subclasses. It can also decorate a function.

    Args:
        network: the class.
        sites: the stages of each kind: those of encoder and skip start at the input, those of decoder at the deepest
            stage. A stage is the path of a module, for its output; or, for skips, the result of `first_argument`,
            `second_argument`, `joined`, `concatenated`, `summed` or `items`; or a list of these. If the paths depend on
            the network's arguments, a function ``network -> sites``. Blocks, residual branches and convs are found
            automatically.
        run: calls the network on an image, ``(network, x) -> output``; by default ``network(x)``.

    Returns:
        ``sites``, or a decorator if there are none.

    Raises:
        ValueError: if a kind is unknown; when the sites are used, if the network has no module with one of the paths.

    Examples:
        >>> from attn3d.networks import register_sites, second_argument
        >>> class MyUNet(torch.nn.Module):
        ...     "stem, down1, down2, then up1(x, skip) and up0(x, skip)"
        >>> sites = register_sites(MyUNet, {"encoder": ["stem", "down1"], "bottleneck": ["down2"],
        ...                                 "decoder": ["up1", "up0"],
        ...                                 "skip": [second_argument("up0"), second_argument("up1")]})
    """
    if sites is None:
        return lambda function: register_sites(network, function, run=run)
    if not callable(sites):
        _check_kinds(network, sites)
    _SITES[network] = sites if callable(sites) else lambda _: sites
    if run is not None:
        _RUNS[network] = run
    return sites


def has_sites(network: nn.Module) -> bool:
    """Returns whether the class of ``network`` is registered."""
    return _look_up(network, _SITES) is not None


def staged_places(network: nn.Module) -> dict[str, Staged]:
    """Returns the places of ``network`` with their stages, by kind.

    If no sites are registered, these are blocks, residual branches and convs.

    Raises:
        ValueError: if a kind of the registered sites is unknown.
    """
    _import_libraries(cls for module in network.modules() for cls in type(module).__mro__)  # which register blocks
    find = _look_up(network, _SITES)
    sites = {} if find is None else find(network)
    _check_kinds(type(network), sites)
    given: dict[str, Staged] = {}
    for kind, stages in sites.items():
        given[kind] = [(number, place) for number, stage in enumerate(stages) for place in _places(stage)]
    staged = inside(network, given) | given
    return {kind: staged[kind] for kind in KINDS if staged.get(kind)}


def run(network: nn.Module, x: Tensor) -> Any:
    """Calls ``network`` on an image, as registered for its class."""
    return (_look_up(network, _RUNS) or nn.Module.__call__)(network, x)


def _look_up(network: nn.Module, table: dict[type, Any]) -> Any:
    _import_libraries(type(network).__mro__)
    return next((table[cls] for cls in type(network).__mro__ if cls in table), None)


def _import_libraries(classes: Iterable[type]) -> None:
    for library in {cls.__module__.partition(".")[0] for cls in classes} & set(_LIBRARIES):
        importlib.import_module(_LIBRARIES[library])


def _places(stage: Stage) -> list[Place]:
    entries = [stage] if isinstance(stage, (str, Place)) else stage
    return [Place(entry) if isinstance(entry, str) else entry for entry in entries]


def check_paths(network: nn.Module, kind: str, paths: Iterable[str]) -> None:
    """Raises a ValueError if the network has no module with one of the paths of its registered sites."""
    for path in paths:
        try:
            network.get_submodule(path)
        except AttributeError as error:
            name = type(network).__name__
            raise ValueError(f"`sites` of {name} must name its modules, got {path!r} of kind {kind!r}") from error


def _check_kinds(network: type, sites: StagesByKind) -> None:
    for kind in sites:
        if kind not in KINDS:
            raise ValueError(f"`sites` of {network.__name__} must have kinds of {', '.join(KINDS)}, got {kind!r}")
