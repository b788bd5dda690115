"""The sites of a network: its places, with the channels and shapes that a probe found, selected by name."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from attn3d.arguments import nearest, of_python
from attn3d.capture import modules_by_path, plain_path, unwrapped
from attn3d.insertion.attach import host_of, is_plain_sequence, taken
from attn3d.insertion.probe import Call, Probe, probe
from attn3d.layers.norms import is_instance_norm
from attn3d.networks.inside import Staged
from attn3d.networks.places import KINDS, Place, innermost, is_inserted
from attn3d.networks.registry import check_paths, has_sites, staged_places

_CONTAINERS = (nn.Sequential, nn.ModuleDict, nn.ModuleList)


@dataclass(frozen=True)
class Site:
    """A named place in a network.

    Attributes:
        kind: one of `attn3d.networks.KINDS`, or "path".
        stage: index from 0. Encoder and skip stages start at the input, decoder stages at the deepest. Blocks, residual
            branches and convs have the index of the stage they are in, counted from the input to the output.
        path: path of the module.
        channels: number of channels C of the map.
        shape: S of the map, for the probed input.
        place: how the map is reached.
        gating_channels: number of channels of the gating signal, the decoder's map at a skip; None without one.
        reader: for a skip that is added inline, path of the module that contains the stage and the sum.
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
        """The name that selects this site in `insert_attention`."""
        return f"{self.kind}:{self.path}"

    @property
    def voxels(self) -> int:
        """The number of voxels of the map."""
        return math.prod(self.shape)


class Sites(list[Site]):
    """A list of `Site` that prints as a table."""

    def __str__(self) -> str:
        rows = [("kind", "stage", "path", "channels", "shape")]
        for site in self:
            shape = " x ".join(str(size) for size in site.shape)
            rows.append((site.kind, str(site.stage), site.path, str(site.channels), shape))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__


class Survey:
    """Finds the sites of a network by a probe.

    Args:
        network: any module.
        input_shape: (B, C, *S) of the image for the probe; guessed by default.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int] | None = None) -> None:
        self.network = network
        self._places = staged_places(network)
        self._input_shape = input_shape
        self._paths: dict[str, str] = {}  # every path of a module, to its first path
        first: dict[nn.Module, str] = {}
        for path, module in modules_by_path(network, aliases=True):
            if path and not is_inserted(path):
                self._paths[path] = first.setdefault(module, path)

    @cached_property
    def _probe(self) -> Probe:
        return probe(self.network, self._input_shape)

    def everything(self) -> Sites:
        """Returns the sites of every kind, or if the class of the network is not registered, of every module.

        Raises:
            ValueError: if the network cannot be probed.
        """
        kinds = list(self._places) if has_sites(self.network) else ["path", *self._places]
        return Sites(site for kind in kinds for site in self._sites(kind, self._staged(kind, None))[0])

    def select(
        self, at: str | Iterable[str], stages: int | Iterable[int] | None = None
    ) -> tuple[Sites, dict[str, str]]:
        """Returns the selected sites, each tensor once, and the reasons why others cannot be used, by name.

        Raises:
            TypeError: if ``at`` or ``stages`` has the wrong type.
            ValueError: if no selected site can be used, or the network cannot be probed; the message gives the reasons.
        """
        chosen: dict[Any, Site] = {}
        left_out: dict[str, str] = {}
        wanted = _integers(stages)
        for request in _strings(at):
            kind, _, pattern = request.partition(":")
            places = _at_stages(request, self._staged(kind, plain_path(pattern) or None), wanted)
            found, refused = self._sites(kind, places)
            if not found:
                reasons = "; ".join(f"{name} {reason}" for name, reason in refused.items())
                raise ValueError(f"`at` {request!r} cannot be used: {reasons}")
            left_out |= refused
            for site in found:
                tensor = host_of(self.network, site.place), site.place.hook, site.place.index
                chosen.setdefault(tensor, site)
        return Sites(chosen.values()), left_out

    def behind_activation(self, site: Site) -> str | None:
        """Returns the nearest site after the activation, if the map at ``site`` is the output of an instance norm.

        Returns None if the map is not the output of an instance norm, and "" if there is no such site.
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
        """Returns whether the output of the module at ``path`` is the output of an instance norm."""
        maker = self._probe.calls[path][0].maker
        return bool(maker) and is_instance_norm(unwrapped(self.network.get_submodule(maker)))

    def _staged(self, kind: str, pattern: str | None) -> Staged:
        if kind == "path":
            found = self._paths if pattern is None else _matching(pattern, list(self._paths))
            paths = dict.fromkeys(self._paths[path] for path in found)  # of a shared module, the first one
            return [(stage, Place(path)) for stage, path in enumerate(paths)]
        if kind not in self._places:
            raise ValueError(self._no_such_kind(kind))
        places = self._places[kind]
        if pattern is None:
            return places
        labels = _matching(pattern, [place.label for _, place in places])
        return [staged for staged in places if staged[1].label in labels]

    def _no_such_kind(self, kind: str) -> str:
        name = type(self.network).__name__
        if kind in self._paths:
            return f"`at` must be a kind of site or path:<module>, got {kind!r}; did you mean 'path:{kind}'?"
        if kind not in KINDS:
            return f"`at` must be a kind of site, got {kind!r}; {nearest(kind, [*self._places, 'path:<module>'])}"
        if has_sites(self.network):
            return f"`at` must be a kind of site of {name}: {', '.join(self._places)} or path:<module>, got {kind!r}"
        registered = [path for path, module in modules_by_path(self.network) if has_sites(module)]
        networks = [path for path in registered if innermost(registered, path.rpartition(".")[0]) is None]
        inside = f"insert into its {' or '.join(f'`{path}`' for path in networks)}, " if networks else ""
        return (
            f"`at` got {kind!r}, but {name} has no registered sites: {inside}select its modules by at='path:<path, glob"
            " or regular expression>', or register sites with attn3d.networks.register_sites"
        )

    def _sites(self, kind: str, places: Staged) -> tuple[list[Site], dict[str, str]]:
        """Returns the sites at ``places``, and the reasons why the others cannot be used, by name."""
        check_paths(self.network, kind, [place.path for _, place in places])
        found, refused = [], {}
        probed = self._probe  # outside the `try`: a failing probe is an error, not the reason to refuse a site
        for stage, place in places:
            try:
                maps = self._maps_at(kind, place, probed)
                met, reader = _signal(probed, place, maps)
            except ValueError as reason:
                refused[f"{kind}:{place.label}"] = str(reason)
            else:
                channels, *shape = maps[0].shape[1:]
                found.append(Site(kind, stage, place.label, channels, tuple(shape), place, met, reader))
        return found, refused

    def _maps_at(self, kind: str, place: Place, probed: Probe) -> list[Tensor]:
        """Returns the maps at a place, one for each call.

        Raises:
            ValueError: if the place cannot be attended; the message gives the reason.
        """
        module, image = unwrapped(self.network.get_submodule(place.path)), probed.image
        calls = probed.calls.get(place.path)
        if not calls:
            raise ValueError("never runs in a forward pass in evaluation mode")
        maps = [_reached(call, place, probed) for call in calls]
        for call, map_ in zip(calls, maps, strict=True):
            if not isinstance(map_, Tensor):
                raise ValueError(f"returns a {type(map_).__name__}, not a map (B, C, *S); name a module inside it")
            if map_.dim() != image.dim() or len(map_) != len(image):
                raise ValueError(f"returns {tuple(map_.shape)}, not a map (B, C, *S) with the axes of the image")
            if kind == "path" and call.channels_last:
                raise ValueError(f"returns channels last, {tuple(map_.shape)}; name a module that has them first")
            if probed.is_prediction(map_):
                raise ValueError("returns the prediction; name a module before it")
        channels = sorted({map_.shape[1] for map_ in maps})
        if len(channels) > 1:
            raise ValueError(f"is called with different channels, {channels}; name a module that is not shared")
        if isinstance(module, _CONTAINERS) and not is_plain_sequence(module):
            raise ValueError("is a container with its own forward; name a module inside it")
        if reason := taken(self.network, place):
            raise ValueError(reason)
        return maps


def _reached(call: Call, place: Place, probed: Probe) -> Any:
    """Returns what is at a place in a call of its module.

    Raises:
        ValueError: if there is nothing; the message gives the reason.
    """
    first, second, *_ = (*call.arguments, None, None)
    if place.hook == "kernel" and first is None:
        raise ValueError("is called with a keyword argument")
    if place.hook in ("first", "second", "joined"):
        argument = second if place.hook == "second" else first
        if argument is None:
            raise ValueError("is called without this argument, or with a keyword argument")
        return argument
    if place.is_concatenated:
        parts = probed.parts(first)
        if len(parts) < 2:
            raise ValueError("is called with a map that `torch.cat` did not return")
        return parts[0 if place.hook == "concatenated_first" else -1]
    if place.index is None:
        return call.output
    if not isinstance(call.output, (list, tuple)) or place.index >= len(call.output):
        raise ValueError(f"returns no list with an entry {place.index}")
    return call.output[place.index]


def _signal(probed: Probe, place: Place, maps: list[Tensor]) -> tuple[int | None, str]:
    """Returns the channels of the gating signal at a place, and for a summed skip the path of its reader.

    The reader is the innermost module whose call contains those of the stage and of the module that adds the skip.

    Raises:
        ValueError: if a summed skip is added by no module or by several.
    """
    calls = probed.calls[place.path]
    call = calls[0]
    if place.hook == "second":
        return call.arguments[0].shape[1], ""
    if place.hook == "joined":
        return call.output.shape[1] - maps[0].shape[1], ""
    if place.is_concatenated:
        return call.arguments[0].shape[1] - maps[0].shape[1], ""
    if place.hook != "summed":
        return None, ""
    met = [pair for map_, call in zip(maps, calls, strict=True) for pair in probed.sums_with(map_, call)]
    readers = {path for _, path in met}
    if len(readers) != 1:
        if not readers:
            raise ValueError("must be added to another map by one module, but is added to no map")
        modules = ", ".join(sorted(path or "the network" for path in readers))
        raise ValueError(f"must be added to another map by one module, but is added by {modules}")
    (adding,) = readers
    around = [path for path in probed.calls if innermost([path], adding) is not None]
    return met[0][0].shape[1], innermost(around, place.path.rpartition(".")[0]) or ""


def _strings(at: str | Iterable[str]) -> list[str]:
    requests = [at] if isinstance(at, str) or not isinstance(at, Iterable) else list(at)
    if not requests or not all(isinstance(request, str) for request in requests):
        raise TypeError(f"`at` must be the name of a kind or site, or a list of such names, got {at!r}")
    return requests


def _integers(stages: int | Iterable[int] | None) -> list[int] | None:
    if stages is None:
        return None
    wanted = of_python(list(stages) if isinstance(stages, Iterable) else [stages])
    if not all(isinstance(stage, int) and not isinstance(stage, bool) for stage in wanted):
        raise TypeError(f"`stages` must be integers, got {stages!r}")
    return list(wanted)


def _at_stages(request: str, places: Staged, stages: list[int] | None) -> Staged:
    if not places:  # only for "path"
        raise ValueError(f"`at` {request!r} must select a module inside the network, which has none")
    if stages is None:
        return places
    count = 1 + max(stage for stage, _ in places)
    for stage in stages:
        if not -count <= stage < count:
            raise ValueError(f"`stages` of {request!r} must be from {-count} to {count - 1}, got {stage}")
    kept = {stage % count for stage in stages}
    chosen = [staged for staged in places if staged[0] in kept]
    if not chosen:
        present = sorted({stage for stage, _ in places})
        raise ValueError(f"`stages` of {request!r} must contain at least one of {present}, got {stages!r}")
    return chosen


def _matching(pattern: str, paths: list[str]) -> list[str]:
    """Returns the path equal to ``pattern``, or the paths that match it as a glob, or as a regular expression."""
    if pattern in paths:
        return [pattern]
    names = pattern.split(".")

    def is_globbed(path: str) -> bool:
        parts = path.split(".")
        return len(parts) == len(names) and all(map(fnmatchcase, parts, names))

    found = [path for path in paths if is_globbed(path)]
    if not found:
        with contextlib.suppress(re.error):  # a glob need not be a valid regular expression
            found = [path for path in paths if re.fullmatch(pattern, path)]
    if not found and paths:
        raise ValueError(
            f"`at` must match a module, as a path, a glob (* does not match dots) or a regular expression, got"
            f" {pattern!r}; {nearest(pattern, paths[:40])}"
        )
    return found
