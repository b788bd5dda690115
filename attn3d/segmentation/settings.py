"""The settings of a training, and the configuration of a run that follows from settings and data."""

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import model_validator as check_model

from attn3d.arguments import check_options, nearest, of_python, one_of
from attn3d.factory import declares, find
from attn3d.networks import KINDS
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import read_json
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import NETWORKS

FORMAT = 3  # version of run folders
EPOCHS = 30  # the default budget


def _number(value: Any) -> Any:
    """Converts numbers that YAML reads as text, such as 1e-3."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _each_once(values: tuple[int, ...]) -> tuple[int, ...]:
    if len({*values}) < len(values):
        raise ValueError("repeated")
    return values


_Count = Annotated[int, Field(strict=True, ge=1)]
_Seed = Annotated[int, Field(strict=True, ge=0)]
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]
_Size = Annotated[_Real, Field(gt=0)]
_NotNegative = Annotated[_Real, Field(ge=0)]
_Part = Annotated[_Real, Field(ge=0, le=1)]
_Decay = Annotated[_Real, Field(ge=0, lt=1)]
_Flag = Annotated[bool, Field(strict=True)]
_PerAxis = tuple[tuple[_Count, _Count, _Count], ...]
_Windows = Annotated[tuple[tuple[_Real, _Size], ...], Field(min_length=1)]
_Spacing = tuple[_Size, _Size, _Size]
_PatchSize = tuple[_Count, _Count, _Count]
_MUST_BE = {  # where the words of pydantic are about an entry
    "at": "a list of kinds of site",
    "class_weights": "a list of numbers of at least 0",
    "kernels": "a list with three whole numbers of at least 1 per entry",
    "labels": "`names` with the `values` of each",
    "mirror": "a list of axes from 0 to 2, each at most once",
    "patch_size": "three positive whole numbers",
    "spacing": "three positive numbers",
    "start_from": "a path",
    "strides": "a list with three whole numbers of at least 1 per entry",
    "windows": "a list of pairs, level and width in HU, with positive widths",
}


def _check_attention(values: Mapping[str, Any]) -> None:
    """Checks a mechanism, its options and its kinds of site, which are used long after the settings are read."""
    if "attention" in values:
        maker, options = find(values["attention"], "attention")
        if declares(maker, "takes_signal"):
            options["gating_channels"] = None  # follow from the site
        check_options(f"`attention` {getattr(maker, '__qualname__', repr(maker))}", maker, options, positional=2)
    at = values.get("at", ())
    for site in at if isinstance(at, tuple) else ():  # the type is checked with the other settings
        if isinstance(site, str):
            one_of("at", site.partition(":")[0], (*KINDS, "path"))


class Settings(BaseModel):
    """Settings of the user. Those that are None are derived from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str | None = Field(
        None,
        description="a name of `attn3d.segmentation.NETWORKS`; by default `DynUNet` on a GPU or if a patch contains a "
        "whole scan, otherwise `UNet`",
    )
    width: _Count = Field(16, description="channels at the highest resolution; they double with each downsampling")
    deep_supervision: _Flag = Field(
        True, description="whether there is a loss at coarser resolutions too, for networks that support it"
    )
    attention: Any = Field("cbam", description="a mechanism, its spec `[name, {option: value}]`, or `none`")
    at: tuple[Annotated[str, Field(strict=True)], ...] = Field(("skip",), description="kinds of site for attention")
    patch_voxels: _Count = Field(2**17, description="approximate number of voxels in a patch")
    spacing: _Spacing | None = Field(
        None, description="spacing of the working grid in mm along right, anterior, superior"
    )
    patch_size: _PatchSize | None = Field(None, description="size of a patch in voxels of the working grid")
    strides: _PerAxis | None = Field(
        None, description="stride of each downsampling, per axis; not for `BasicUNet` and `SegResNet`"
    )
    kernels: _PerAxis | None = Field(
        None, description="kernel size at each resolution, per axis; only for `DynUNet` and `ResidualDynUNet`"
    )
    windows: Literal["auto"] | _Windows | None = Field(
        "auto",
        description="level and width in HU of each channel of a CT, such as `[[40, 80], [80, 200]]`; `auto` derives "
        "them if the data set is known as CT; null for mean 0 and standard deviation 1",
    )
    mirror: Annotated[tuple[Annotated[int, Field(strict=True, ge=0, le=2)], ...], AfterValidator(_each_once)] = Field(
        (0,), description="axes along which patches are mirrored: 0 right, 1 anterior, 2 superior"
    )
    warped: _Part | None = Field(None, description="fraction of the patches that are rotated and scaled")
    rotation: Annotated[_Real, Field(ge=0, le=180)] | None = Field(
        None, description="largest rotation of a patch about each axis, in degrees"
    )
    scaling: _Decay | None = Field(
        None, description="largest change of a patch's scale along each axis, as a fraction of 1"
    )
    brightness: _Decay = Field(
        0.0,
        description="largest change of the intensities of a patch above its darkest voxel, as a fraction of 1, in half "
        "of the patches; for scans that are not CT",
    )
    epochs: _Count | None = Field(None, description=f"passes over the cases; {EPOCHS} if `minutes` is not set")
    minutes: _Size | None = Field(
        None, description="training time in minutes, including validation, instead of `epochs`"
    )
    around_labels: _Part = Field(
        2 / 3,
        description="fraction of the patches that are placed on a label; choose a small one if labels fill the scan",
    )
    patches_per_case: _Count = Field(4, description="patches per case in an epoch")
    batch_size: _Count = Field(2, description="patches per step on each device")
    loss: Literal["dice_ce", "dice_focal", "generalized_dice", "tversky"] = Field(
        "dice_ce",
        description="`dice_ce` (Dice and cross-entropy), `dice_focal` (Dice and focal loss), `generalized_dice` or "
        "`tversky`",
    )
    class_weights: tuple[_NotNegative, ...] | None = Field(
        None, description="weights of the background and of each label, for the loss `dice_ce`"
    )
    start_from: Path | None = Field(
        None, description="a run folder, or a checkpoint of PyTorch or safetensors, with the initial weights"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="`adamw`, or `sgd` with Nesterov momentum 0.99")
    learning_rate: Annotated[_Real, Field(gt=0, lt=1e9)] = Field(
        3e-3, description="highest learning rate; it decays to 0 over the budget"
    )
    weight_decay: _NotNegative = Field(1e-2, description="weight decay of the optimizer")
    warmup_steps: _Seed = Field(50, description="steps over which the learning rate rises")
    gradient_clip: _NotNegative = Field(12.0, description="largest norm of the gradient; 0 for no limit")
    ema_decay: _Decay = Field(
        0.0, description="decay of the moving average of the weights, which is validated and saved; 0 for no average"
    )
    channels_last: _Flag = Field(False, description="whether to use the channels-last memory format")
    validate_every: _Count = Field(
        5, description="epochs between validations; a budget of `minutes` has at most five validations"
    )
    held_out: Annotated[_Real, Field(gt=0, lt=1)] = Field(0.2, description="fraction of the cases for validation")
    split_seed: _Seed = Field(0, description="seed of the split")
    seed: _Seed = Field(0, description="seed of the weights and the patches")

    @check_model(mode="before")
    @classmethod
    def _settle(cls, values: Any) -> Any:
        """Checks that there is one budget, and that the network, the mechanism, its options and the kinds of site are
        known; without attention there are no sites."""
        values = {name: of_python(value) for name, value in dict(values).items()}
        if values.get("epochs") is not None and values.get("minutes") is not None:
            raise ValueError(
                f"`epochs` and `minutes` cannot both be set, got {values['epochs']!r} and {values['minutes']!r}"
            )
        if values.get("epochs") is None and values.get("minutes") is None:
            values["epochs"] = EPOCHS
        if values.get("attention", "") in (None, "none"):
            values |= {"attention": None, "at": ()}
        elif cls is Settings:  # the labels of a run can be read without its mechanism
            _check_attention(values)
        if values.get("network") is not None:
            one_of("network", values["network"], NETWORKS)
        return values


class Configuration(Settings):
    """All settings of a run, including those derived from the data, and properties of the data."""

    network: str
    spacing: _Spacing
    patch_size: _PatchSize
    strides: _PerAxis
    kernels: _PerAxis
    windows: _Windows | None
    warped: _Part
    rotation: Annotated[_Real, Field(ge=0, le=180)]
    scaling: _Decay
    data: str = Field(description="the folder of the data set")
    layout: str = Field(description="layout of the data set")
    simulated: bool = Field(description="whether the scans are simulated")
    modality: str = Field(description="CT, MRI or unknown")
    labels: Labels = Field(description="the labels to learn")
    images: _Count = Field(description="number of images per case")
    versions: dict[str, str] = Field(description="versions of the libraries")

    @property
    def in_channels(self) -> int:
        """Number of input channels of the network."""
        return self.images if self.windows is None else len(self.windows)

    @property
    def out_channels(self) -> int:
        """Number of output channels: the regions, or the background and the labels."""
        return len(self.labels.channels)

    @property
    def network_shape(self) -> dict[str, Any]:
        """The arguments of `create_network` but the name of the network and its attention."""
        names = ("in_channels", "out_channels", "strides", "kernels", "width", "deep_supervision")
        return {name: getattr(self, name) for name in names}

    @property
    def budget(self) -> str:
        """The budget of the training as text."""
        if self.minutes is None:
            return f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        return f"{self.minutes:g} minute{'' if self.minutes == 1 else 's'}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, "attn3d": version("attn3d"), **self.model_dump(mode="json")}

    @classmethod
    def read(cls, path: Path) -> "Configuration":
        """Reads the output of `as_dict` from a file.

        Raises:
            FileError: when the file does not exist, is not JSON, or is of another version.
        """
        settings = read_json(path, missing="does not exist; give the folder of a run of `attn3d train`")
        if not isinstance(settings, dict) or settings.pop("format", None) != FORMAT:
            raise FileError(path, f"does not have format {FORMAT}, which this version reads; train again")
        settings.pop("attn3d", None)
        if odd := set(cls.model_fields) ^ set(settings):
            raise FileError(path, f"has other settings than this version, such as {min(odd)!r}; train again")
        try:
            return checked(cls, settings)
        except ValueError as error:
            raise FileError(path, f"has an invalid value: {error}") from error


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Any:
    """Checks values and returns them as settings.

    Raises:
        ValueError: for the first invalid value: one sentence with its name, what it must be, and the value.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] in ("extra_forbidden", "invalid_key"):
        raise ValueError(f"has an unknown setting {name!r}; {nearest(name, kind.model_fields)}")
    if not name:
        raise ValueError(str(first["ctx"]["error"]))
    words = f"must be {_MUST_BE[name]}" if name in _MUST_BE else first["msg"].replace("Input should be", "must be")
    raise ValueError(f"`{name}` {words}, got {values.get(name)!r}")


def settings_from(file: Path | str | None, given: Mapping[str, Any]) -> Settings:
    """Reads settings from a YAML or JSON file. Settings in ``given`` override those of the file.

    Raises:
        FileError: when the file cannot be read, is not a mapping, or has an unknown or invalid setting.
        ValueError: when a setting in ``given`` is unknown or invalid.
    """
    if file is None:
        return checked(Settings, given)
    try:
        read = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(file, f"is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise FileError(file, f"must be a mapping of settings, got {type(read).__name__}")
    try:
        checked(Settings, read)
    except (TypeError, ValueError) as error:
        raise FileError(file, str(error)) from error
    budgets = {"epochs", "minutes"}
    kept = {name: value for name, value in read.items() if name not in budgets or not budgets & set(given)}
    return checked(Settings, kept | dict(given))
