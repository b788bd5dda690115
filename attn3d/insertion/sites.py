"""The sites of a network: its places, probed, by the names in which they are asked for."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from attn3d.arguments import nearest
from attn3d.insertion.attach import is_plain_sequence
from attn3d.insertion.probe import Call, Probe, probe
from attn3d.layers.norms import is_instance_norm
from attn3d.networks.places import KINDS, Place, is_inserted
from attn3d.networks.registry import has_sites, staged_places

_CONTAINERS = (nn.Sequential, nn.ModuleDict, nn.ModuleList)


@dataclass(frozen=True)
class Site:
    """A named place in a network.

    Attributes:
        kind: of `attn3d.networks.KINDS`, or "path".
        stage: from 0; encoder and skip from the input on, decoder from the deepest on; blocks, residual branches
            and convs have the number of the stage they lie in, counted through from the input to the output.
        path: of the module.
        channels: C of the map.
        shape: S of the map, at the probed input.
        place: how it is reached.
        gating_channels: of the map that meets it, the gating signal; None where none does.
        reader: path of the module that adds it to that map, where it does so inline.
    """

    kind: str
    stage: int
    path: str
    channels: int
    shape: tuple[int, ...]
    place: Place = field(repr=False)
    gating_channels: int | None = None
    reader: str = ""

    @property
    def name(self) -> str:
        """How `insert_attention` is told of this very site."""
        return f"{self.kind}:{self.path}"

    @property
    def voxels(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)


class Sites(list[Site]):
    """A list of `Site` that prints as a table."""

    def __str__(self) -> str:
        rows = [("kind", "stage", "path", "channels", "shape")]
        rows += [
            (site.kind, str(site.stage), site.path, str(site.channels), " x ".join(map(str, site.shape)))
            for site in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


class Survey:
    """What a probe found at the places of a network.

    Args:
        network: any module.
        input_shape: (B, C, *S) of the image to probe it with; by default a guess.

    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int] | None = None) -> None:
        self.network = network
        self.refused: dict[str, str] = {}
        self._places = staged_places(network)
        self._input_shape = input_shape
        self._paths: dict[str, str] = {}  # of every module, to the first path of the same module
        first: dict[nn.Module, str] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            if path and not is_inserted(path):
                self._paths[path] = first.setdefault(module, path)

    @cached_property
    def _probe(self) -> Probe:
        return probe(self.network, self._input_shape)

    def everything(self) -> Sites:
        """The sites of every kind; where the class of the network is unknown, those of every module.

        Raises:
            ValueError: when the network cannot be probed.
        """
        kinds = list(self._places) if has_sites(self.network) else ["path", *self._places]
        return Sites(site for kind in kinds for site in self._sites(kind, self._staged(kind, None)))

    def select(self, at: str | Iterable[str], stages: int | Iterable[int] | None = None) -> Sites:
        """The sites that ``at`` and ``stages`` name, each tensor once; `refused` tells what was left out and why.

        Raises:
            TypeError: when ``at`` or ``stages`` is of the wrong type.
            ValueError: when they name nothing that can be used, saying why and what there is, or when the network
                cannot be probed.
        """
        chosen: dict[Place, Site] = {}
        for request in _strings(at):
            kind, _, pattern = request.partition(":")
            places = _at_stages(request, self._staged(kind, pattern or None), stages)
            self.refused.clear()
            found = self._sites(kind, places)
            exact = pattern and len(places) == 1
            if not found or (exact and self.refused):
                reasons = "; ".join(f"{name} {reason}" for name, reason in self.refused.items())
                raise ValueError(f"`at` {request!r} cannot be used: {reasons}")
            for site in found:
                chosen.setdefault(site.place, site)
        return Sites(chosen.values())

    def behind_activation(self, site: Site) -> str | None:
        """The nearest site behind the activation, where the map at ``site`` comes straight out of an instance norm.

        None where it does not; "" where there is no such site.
        """
        if site.place.hook != "output" or not self._is_of_instance_norm(site.path):
            return None
        blocks = {place.path for _, place in self._places.get("block", [])}
        path = site.path
        while path := path.rpartition(".")[0]:
            calls = self._probe.calls.get(path, [])
            if calls and isinstance(calls[0].output, Tensor) and not self._is_of_instance_norm(path):
                return f"{'block' if path in blocks else 'path'}:{path}"
        return ""

    def _is_of_instance_norm(self, path: str) -> bool:
        """Whether an instance norm made what the module at ``path`` returns."""
        maker = self._probe.calls[path][0].maker
        return bool(maker) and is_instance_norm(self.network.get_submodule(maker))

    def _staged(self, kind: str, pattern: str | None) -> list[tuple[int, Place]]:
        if kind == "path" and pattern is not None:
            paths = dict.fromkeys(self._paths[path] for path in _matching(pattern, list(self._paths)))
            return [(stage, Place(path)) for stage, path in enumerate(paths)]
        if kind == "path":
            return [(stage, Place(path)) for stage, path in enumerate(dict.fromkeys(self._paths.values()))]
        if kind not in self._places:
            raise ValueError(self._no_such_kind(kind))
        places = self._places[kind]
        if pattern is None:
            return places
        labels = _matching(pattern, [place.label for _, place in places])
        return [staged for staged in places if staged[1].label in labels]

    def _no_such_kind(self, kind: str) -> str:
        name = type(self.network).__name__
        if kind not in KINDS:
            return f"`at` names no kind of site: {kind!r}; {nearest(kind, [*self._places, 'path:<module>'])}"
        if has_sites(self.network):
            return f"`at` {kind!r} is no kind of site of {name}, which has {', '.join(self._places)} and path:<module>"
        return (
            f"`at` {kind!r}: {name} has no registered sites. Name its modules, at='path:<path, glob or regular"
            " expression>', or register sites for it with attn3d.networks.register_sites"
        )

    def _sites(self, kind: str, places: Iterable[tuple[int, Place]]) -> list[Site]:
        found = []
        probed = self._probe  # a network that cannot be probed is no reason to refuse a site
        for stage, place in places:
            try:
                maps = self._maps_at(kind, place, probed)
                met, reader = _signal(probed, place, maps)
            except ValueError as reason:
                self.refused[f"{kind}:{place.label}"] = str(reason)
            else:
                channels, *shape = maps[0].shape[1:]
                found.append(Site(kind, stage, place.label, channels, tuple(shape), place, met, reader))
        return found

    def _maps_at(self, kind: str, place: Place, probed: Probe) -> list[Tensor]:
        """The maps at a place, one of each call.

        Raises:
            ValueError: when it cannot be attended, saying why.
        """
        module, image = self.network.get_submodule(place.path), probed.image
        calls = probed.calls.get(place.path)
        if not calls:
            raise ValueError("never runs in a forward pass")
        maps = [_reached(call, place, probed) for call in calls]
        for call, map_ in zip(calls, maps, strict=True):
            if map_ is None:
                raise ValueError("is called without this argument, or with its name")
            if not isinstance(map_, Tensor):
                raise ValueError(f"gives a {type(map_).__name__}, not a map (B, C, *S); name a module inside it")
            if map_.dim() != image.dim() or len(map_) != len(image):
                raise ValueError(f"gives {tuple(map_.shape)}, not a map (B, C, *S) with the axes of the image")
            if kind == "path" and call.channels_last:
                raise ValueError(f"has its channels last: {tuple(map_.shape)}; name a module that has them first")
            if probed.is_prediction(map_):
                raise ValueError("gives the prediction itself; name a module before it")
        channels = sorted({map_.shape[1] for map_ in maps})
        if len(channels) > 1:
            raise ValueError(f"is called with different channels, {channels}; name a module that is not shared")
        if isinstance(module, _CONTAINERS) and not is_plain_sequence(module) and place.hook == "output":
            raise ValueError("is a container with a forward of its own, which may run all in it; name a module in it")
        return maps


def _reached(call: Call, place: Place, probed: Probe) -> Any:
    """The map at a place in a call of its module, or None."""
    first: Any = call.arguments[0] if call.arguments else None
    if place.hook == "second":
        return call.arguments[1] if len(call.arguments) > 1 else None
    if place.hook in ("first", "joined"):
        return first
    if place.hook == "concatenated":
        parts = probed.parts(first)
        return parts[cast(int, place.index)] if len(parts) > 1 else None
    return call.output if place.index is None else call.output[place.index]


def _signal(probed: Probe, place: Place, maps: list[Tensor]) -> tuple[int | None, str]:
    """The channels of the map that meets the one at a place, and the module that adds the two inline.

    Raises:
        ValueError: when no module does, or several do.
    """
    calls = probed.calls[place.path]
    call = calls[0]
    if place.hook == "second":
        return call.arguments[0].shape[1], ""
    if place.hook == "joined":
        return call.output.shape[1] - maps[0].shape[1], ""
    if place.hook == "concatenated":
        return call.arguments[0].shape[1] - maps[0].shape[1], ""
    if place.hook != "summed":
        return None, ""
    met = [pair for map_, call in zip(maps, calls, strict=True) for pair in probed.sums_with(map_, call)]
    readers = {path for _, path in met}
    if len(readers) != 1:
        within = f"by {', '.join(sorted(path or 'the network' for path in readers))}" if readers else "to no map"
        raise ValueError(f"must be added to another map by one module, but is added {within}")
    return met[0][0].shape[1], readers.pop()


def _strings(at: str | Iterable[str]) -> list[str]:
    requests = [at] if isinstance(at, str) else list(at)
    if not requests or not all(isinstance(request, str) for request in requests):
        raise TypeError(f"`at` must be the name of a kind or site, or a list of such names, got {at!r}")
    return requests


def _at_stages(
    request: str, places: list[tuple[int, Place]], stages: int | Iterable[int] | None
) -> list[tuple[int, Place]]:
    if stages is None:
        return places
    count = 1 + max(stage for stage, _ in places)
    wanted = [stages] if isinstance(stages, int) else list(stages)
    for stage in wanted:
        if not isinstance(stage, int) or isinstance(stage, bool):
            raise TypeError(f"`stages` must be integers, got {stages!r}")
        if not -count <= stage < count:
            raise ValueError(f"`stages` of {request!r} must be from {-count} to {count - 1}, got {stage}")
    kept = {stage % count for stage in wanted}
    return [staged for staged in places if staged[0] in kept]


def _matching(pattern: str, paths: list[str]) -> list[str]:
    """The paths that are ``pattern``, or match it as a glob, or else as a regular expression."""
    if pattern in paths:
        return [pattern]
    names = pattern.split(".")

    def is_globbed(path: str) -> bool:
        parts = path.split(".")
        return len(parts) == len(names) and all(map(fnmatchcase, parts, names))

    found = [path for path in paths if is_globbed(path)]
    if not found:
        with contextlib.suppress(re.error):  # a glob may be no expression
            found = [path for path in paths if re.fullmatch(pattern, path)]
    if not found:
        raise ValueError(
            f"`at` has {pattern!r}, which is no path, no glob whose * stays between two dots and no regular"
            f" expression of a module that could be meant; {nearest(pattern, paths[:40])}"
        )
    return found
