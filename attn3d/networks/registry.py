"""Which network class has which places.

A network is found through the method resolution order of its class, so that a subclass has its parent's places.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from attn3d.networks.inside import Staged, inside
from attn3d.networks.places import KINDS, Place

Stage = str | Place | Sequence[str | Place]
Sites = Mapping[str, Sequence[Stage]]

_LIBRARIES = {  # with sites of their own, imported when one of their networks is met
    "monai": "attn3d.networks.monai",
    "dynamic_network_architectures": "attn3d.networks.nnunet",
}
_SITES: dict[type, Callable[[Any], Sites]] = {}
_RUNS: dict[type, Callable[[Any, Tensor], Any]] = {}
_Find = TypeVar("_Find", bound=Callable[..., Sites])


@overload
def register_sites(
    network: type[nn.Module], sites: None = None, *, run: Callable[[Any, Tensor], Any] | None = None
) -> Callable[[_Find], _Find]: ...
@overload
def register_sites(
    network: type[nn.Module], sites: Sites | Callable[..., Sites], *, run: Callable[[Any, Tensor], Any] | None = None
) -> Sites | Callable[..., Sites]: ...
def register_sites(
    network: type[nn.Module],
    sites: Any = None,
    *,
    run: Callable[[Any, Tensor], Any] | None = None,
) -> Any:
    """Says where attention can go in a network class and its subclasses; also a decorator of a function.

    Args:
        network: the class.
        sites: for each kind its stages: of encoder and skip from the input on, of decoder from the deepest on.
            A stage is the path of a module whose output is meant, or, for skips, one of `second_argument`,
            `joined`, `concatenated`, `summed`, `items`; or a list of these. Where the paths depend on how a network
            was built, a function ``network -> sites``. Blocks, residual branches and convs are found by themselves.
        run: how the network is called on an image, ``(network, x) -> output``, where that is not ``network(x)``.

    Returns:
        ``sites``, or a decorator where there are none.

    Raises:
        ValueError: when a kind is unknown.

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
    """Whether the class of ``network`` is registered."""
    return _look_up(network, _SITES) is not None


def staged_places(network: nn.Module) -> dict[str, Staged]:
    """By kind, the places of ``network`` with their stages; where no sites are registered, its convs alone."""
    find = _look_up(network, _SITES)
    sites = {} if find is None else find(network)
    _check_kinds(type(network), sites)
    given = {
        kind: [(number, place) for number, stage in enumerate(stages) for place in _places(stage)]
        for kind, stages in sites.items()
    }
    staged = inside(network, given) | given
    return {kind: staged[kind] for kind in KINDS if staged.get(kind)}


def run(network: nn.Module, x: Tensor) -> Any:
    """Calls ``network`` on an image the way its class is called."""
    return (_look_up(network, _RUNS) or nn.Module.__call__)(network, x)


def _look_up(network: nn.Module, table: dict[type, Any]) -> Any:
    classes = type(network).__mro__
    for library in {cls.__module__.partition(".")[0] for cls in classes} & set(_LIBRARIES):
        importlib.import_module(_LIBRARIES[library])
    return next((table[cls] for cls in classes if cls in table), None)


def _places(stage: Stage) -> list[Place]:
    entries = [stage] if isinstance(stage, (str, Place)) else stage
    return [Place(entry) if isinstance(entry, str) else entry for entry in entries]


def _check_kinds(network: type, sites: Sites) -> None:
    for kind in sites:
        if kind not in KINDS:
            raise ValueError(f"`sites` of {network.__name__} has the kind {kind!r}; available: {', '.join(KINDS)}")
