"""All settings of a training as plain data, and where they come from."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from attn3d.arguments import nearest, one_of, read_spec
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.fingerprint import Fingerprint, Geometry, propose_geometry
from attn3d.segmentation.networks import NETWORKS, shape_multiple
from attn3d.segmentation.windows import propose_windows, warn_of_invisible
from attn3d.segmentation.writing import read_json

FORMAT = 1  # of run folders
_WINDOW = 8  # voxels of an attention window along the finest axis


@dataclass(frozen=True)
class Configuration:
    """What a network is trained on, how it is built and how it is trained.

    Attributes:
        data: the folder of the data set.
        layout: that it has.
        simulated: whether all of it is.
        modality: "CT", "MRI" or "unknown".
        labels: value and name of each label, without the background.
        images: files of a case, which become channels.
        network: a key of `attn3d.segmentation.NETWORKS`.
        width: its channels at the highest resolution.
        strides: of each step down, per axis.
        kernels: of each resolution, per axis.
        attention: a spec for `attn3d.insert_attention`, or None.
        at: kinds of site.
        spacing: of the working grid, mm along right, anterior, superior.
        patch_size: voxels of it.
        windows: level and width of each channel that a CT is shown in; None for any other scan, which is shown
            with mean 0 and standard deviation 1.
        epochs: passes over the cases.
        patches_per_case: that each pass takes of a case; two of three hold a label, in their middle where the border
            allows it.
        batch_size: patches for each step, on each device.
        learning_rate: at the start; it falls to zero.
        validate_every: epochs between two validations.
        held_out: the fraction of the cases that the network is validated on.
        split_seed: of the split.
        seed: of the weights and the patches.
        versions: of the libraries.
    """

    data: str
    layout: str
    simulated: bool
    modality: str
    labels: dict[int, str]
    images: int
    network: str
    width: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    attention: Any
    at: tuple[str, ...]
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    windows: tuple[tuple[float, ...], ...] | None
    epochs: int
    patches_per_case: int
    batch_size: int
    learning_rate: float
    validate_every: int
    held_out: float
    split_seed: int
    seed: int
    versions: dict[str, str]

    @property
    def in_channels(self) -> int:
        """Channels that the network sees."""
        return self.images if self.windows is None else len(self.windows)

    @property
    def out_channels(self) -> int:
        """Classes, the background included; label values need not be consecutive."""
        return 1 + len(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"format": FORMAT, "attn3d": version("attn3d"), **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> "Configuration":
        """What `as_dict` gave, from a file.

        Raises:
            FileError: when it is not there, no JSON, or of another version.
        """
        settings = read_json(path, missing="is not there; give the folder of a run of `attn3d train`")
        if not isinstance(settings, dict) or settings.pop("format", None) != FORMAT:
            raise FileError(path, f"is not of the format {FORMAT} that this version reads; train again")
        settings.pop("attn3d", None)
        names = {field.name for field in fields(cls)}
        if odd := names ^ set(settings):
            raise FileError(path, f"has another set of settings than this version, see {sorted(odd)[0]!r}")
        try:
            settings["labels"] = {int(value): str(name) for value, name in dict(settings["labels"]).items()}
            _check(settings)
        except (ValueError, TypeError) as error:
            raise FileError(path, f"was changed to what cannot be: {error}") from error
        return cls(**{name: _tuples(value) if name in _TUPLES else value for name, value in settings.items()})


_TUPLES = ("strides", "kernels", "at", "spacing", "patch_size", "windows")
# What a file given as --config, or an argument of `train`, may set; the rest follows from the data.
DEFAULTS: dict[str, Any] = {
    "network": "UNet",
    "width": 16,
    "attention": "cbam",
    "at": ("skip",),
    "patch_voxels": 2**17,
    "spacing": None,
    "patch_size": None,
    "strides": None,
    "kernels": None,
    "windows": "auto",
    "epochs": 30,
    "patches_per_case": 4,
    "batch_size": 2,
    "learning_rate": 3e-3,
    "validate_every": 5,
    "held_out": 0.2,
    "split_seed": 0,
    "seed": 0,
}
_LEAST = {
    **dict.fromkeys(("width", "patch_voxels", "epochs", "patches_per_case", "batch_size", "validate_every"), 1),
    **{"images": 1, "seed": 0, "split_seed": 0},
}
_BETWEEN = {"learning_rate": (1e-12, 1e9), "held_out": (1e-12, 1.0)}


def settings_from(file: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`DEFAULTS`, overridden by a YAML or JSON file, overridden by what is given and not None.

    Raises:
        FileError: when the file cannot be read or is no mapping.
        ValueError: when a setting is unknown or of a kind that it cannot have.
    """
    settings = dict(DEFAULTS)
    if file is not None:
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(file, f"cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise FileError(file, f"is neither YAML nor JSON: {' '.join(str(error).split())}") from error
        if not isinstance(read, dict):
            raise FileError(file, f"settings by name are needed, got {type(read).__name__}")
        for name in read:
            if name not in DEFAULTS:
                raise FileError(file, f"has an unknown setting {name!r}; {nearest(str(name), DEFAULTS)}")
        settings |= read
    settings |= {name: value for name, value in given.items() if value is not None}
    for name in _BETWEEN:
        if isinstance(settings[name], str):  # YAML takes 1e-3 for text
            with suppress(ValueError):
                settings[name] = float(settings[name])
    _check(settings)
    if settings["attention"] in (None, "none"):
        settings |= {"attention": None, "at": ()}
    return settings


def _check(settings: Mapping[str, Any]) -> None:
    """Checks settings that came from a person, as far as they are given.

    Raises:
        ValueError: with the name of the setting, what it must be and what it is.
    """
    for name, least in _LEAST.items():
        if name in settings and not (_is(int, settings[name]) and settings[name] >= least):
            raise ValueError(f"`{name}` must be a number of at least {least}, got {settings[name]!r}")
    for name, (low, high) in _BETWEEN.items():
        value = settings[name]
        if not _is(float, value) or not value >= low:
            raise ValueError(f"`{name}` must be a number of at least {low:g}, got {value!r}")
        if not value < high:
            raise ValueError(f"`{name}` must be below {high:g}, got {value!r}")
    one_of("network", settings["network"], NETWORKS)
    for name, kind in (("spacing", float), ("patch_size", int)):
        if settings[name] is not None and not _are(kind, settings[name], 3):
            whole = ", whole ones" if kind is int else ""
            raise ValueError(f"`{name}` must be three positive numbers{whole}, got {settings[name]!r}")
    for name in ("strides", "kernels"):
        value = settings[name]
        if value is not None and not (isinstance(value, list | tuple) and all(_are(int, one, 3) for one in value)):
            raise ValueError(f"`{name}` must be a list of three whole numbers of at least 1 each, got {value!r}")
    windows = settings["windows"]
    if windows not in (None, "auto"):
        pairs = isinstance(windows, list | tuple) and len(windows) > 0
        if not pairs or not all(isinstance(one, list | tuple) and len(one) == 2 for one in windows):
            raise ValueError(f"`windows` must be a list of level and width in HU each, got {windows!r}")
        if not all(_is(float, level) and _is(float, width) and width > 0 for level, width in windows):
            raise ValueError(f"`windows` must be numbers, the widths positive, got {windows!r}")
    if isinstance(settings["at"], str) or not all(isinstance(one, str) for one in settings["at"]):
        raise ValueError(f"`at` must be a list of kinds of site, got {settings['at']!r}")


def _is(kind: type, value: Any) -> bool:
    """Whether a value is a finite number, a whole one for ``int``."""
    kinds = int if kind is int else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _are(kind: type, values: Any, count: int) -> bool:
    """Whether values are so many positive numbers."""
    return isinstance(values, list | tuple) and len(values) == count and all(_is(kind, v) and v > 0 for v in values)


def configure(dataset: Any, images: int, fingerprint: Fingerprint, settings: Mapping[str, Any]) -> Configuration:
    """The configuration for a data set: what is set, and for the rest what its fingerprint asks for.

    Raises:
        ValueError: when patch size and strides do not go together.
    """
    geometry = propose_geometry(fingerprint, settings["patch_voxels"], settings["spacing"], settings["patch_size"])
    strides = _tuples(settings["strides"]) if settings["strides"] is not None else geometry.strides
    kernels = _tuples(settings["kernels"]) if settings["kernels"] is not None else geometry.kernels
    multiple = shape_multiple(settings["network"], strides)
    windows = settings["windows"]
    if windows == "auto":
        windows = propose_windows(dataset.modality, fingerprint) if images == 1 else None
    if windows is not None and images != 1:
        raise ValueError(f"`windows` are for a CT of one image, got cases of {images}")
    warn_of_invisible(windows, fingerprint)
    chosen = ("network", "width", "epochs", "patches_per_case", "batch_size", "learning_rate")
    return Configuration(
        data=str(dataset.folder.resolve()),
        layout=dataset.layout,
        simulated=dataset.simulated,
        modality=dataset.modality,
        labels=dict(dataset.labels),
        images=images,
        strides=strides,
        kernels=kernels,
        attention=with_window(settings["attention"], geometry.spacing),
        at=tuple(settings["at"]),
        spacing=geometry.spacing,
        patch_size=_fitting(geometry, multiple, given=settings["patch_size"] is not None),
        windows=_tuples(windows),
        versions={name: version(name) for name in ("torch", "monai", "torchio", "lightning", "nibabel", "numpy")},
        **{name: settings[name] for name in (*chosen, "validate_every", "held_out", "split_seed", "seed")},
    )


def with_window(attention: Any, spacing: Sequence[float]) -> Any:
    """The spec of a mechanism, with a size for the pattern "window" if it has none.

    8 voxels along the finest axis and about as many mm along the others, but 2 voxels at least.
    """
    if attention is None:
        return None
    name, options = read_spec("attention", attention)
    if options.get("pattern") != "window":
        return attention
    size = [max(2, round(_WINDOW * min(spacing) / one)) for one in spacing]
    return [name, {**options, "pattern": ["window", {"size": size}]}]


def _fitting(geometry: Geometry, multiple: tuple[int, ...], given: bool) -> tuple[int, ...]:
    """The patch size, up to a multiple of what the network divides it by."""
    fitting = tuple(-(-size // one) * one for size, one in zip(geometry.patch_size, multiple, strict=True))
    if given and fitting != geometry.patch_size:
        raise ValueError(f"`patch_size` must be multiples of {multiple}, got {geometry.patch_size}; try {fitting}")
    return fitting


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value
