"""What a person may set of a training, and what a run has settled."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
)
from pydantic import model_validator as check_model
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from attn3d.arguments import nearest, one_of
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import NETWORKS
from attn3d.segmentation.writing import read_json

FORMAT = 3  # of run folders
EPOCHS = 30  # where no budget is given


@dataclass(frozen=True)
class MustBe:
    """What a setting must be, in the words of the one error that it gives."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            try:
                return inner(value)
            except ValidationError as error:
                raise PydanticCustomError("must_be", "{words}", {"words": f"must be {self.words}"}) from error

        return core_schema.no_info_wrap_validator_function(check, handler(source))


def _number(value: Any) -> Any:
    """A number that YAML takes for text, as it does 1e-3."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _each_once(values: tuple[int, ...]) -> tuple[int, ...]:
    if len({*values}) < len(values):
        raise ValueError("repeated")
    return values


_Whole = Annotated[int, Field(strict=True, ge=1)]
_Size = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Count = Annotated[_Whole, MustBe("a whole number of at least 1")]
_Seed = Annotated[int, Field(strict=True, ge=0), MustBe("a whole number of at least 0")]
_NotNegative = Annotated[_Real, Field(ge=0), BeforeValidator(_number), MustBe("a number of at least 0")]
_Share = Annotated[_Real, Field(gt=0, lt=1), BeforeValidator(_number), MustBe("a number above 0 and below 1")]
_Part = Annotated[_Real, Field(ge=0, le=1), BeforeValidator(_number), MustBe("a number from 0 to 1")]
_Decay = Annotated[_Real, Field(ge=0, lt=1), BeforeValidator(_number), MustBe("a number of at least 0 and below 1")]
_Rate = Annotated[
    _Real, Field(ge=1e-12, lt=1e9), BeforeValidator(_number), MustBe("a number of at least 1e-12 and below 1e+09")
]
_LOSSES = "dice_ce, dice_focal, generalized_dice or tversky"
_Flag = Annotated[bool, Field(strict=True), MustBe("true or false")]
_PerAxis = Annotated[
    tuple[tuple[_Whole, _Whole, _Whole], ...], MustBe("a list of three whole numbers of at least 1 each")
]
_Windows = Annotated[
    tuple[tuple[_Real, _Size], ...],
    Field(min_length=1),
    MustBe("a list of level and width in HU each, the widths positive"),
]
_Spacing = Annotated[tuple[_Size, _Size, _Size], MustBe("three positive numbers")]
_PatchSize = Annotated[tuple[_Whole, _Whole, _Whole], MustBe("three positive numbers, whole ones")]


class Settings(BaseModel):
    """What a person may set; what is None follows from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Annotated[str, MustBe("a name")] | None = Field(
        None,
        description="a name of `attn3d.segmentation.NETWORKS`; by default `DynUNet` on a GPU or where a patch holds a "
        "whole scan, else `UNet`",
    )
    width: _Count = Field(16, description="channels at the highest resolution; they double with each step down")
    deep_supervision: _Flag = Field(True, description="a loss at coarser resolutions too, where the network has one")
    attention: Any = Field("cbam", description="a mechanism, or its spec `[name, {option: value}]`, or `none`")
    at: Annotated[tuple[Annotated[str, Field(strict=True)], ...], MustBe("a list of kinds of site")] = Field(
        ("skip",), description="kinds of site for it"
    )
    patch_voxels: _Count = Field(2**17, description="voxels of a patch, about")
    spacing: _Spacing | None = Field(None, description="of the working grid: mm along right, anterior, superior")
    patch_size: _PatchSize | None = Field(None, description="voxels of the working grid")
    strides: _PerAxis | None = Field(None, description="of each step down, per axis")
    kernels: _PerAxis | None = Field(None, description="of each resolution, per axis")
    windows: Annotated[Literal["auto"] | _Windows | None, MustBe(_Windows.__metadata__[-1].words)] = Field(
        "auto", description="level and width in HU of each channel of a CT; null for mean 0 and standard deviation 1"
    )
    mirror: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0, le=2)], ...],
        AfterValidator(_each_once),
        MustBe("a list of axes from 0 to 2, each at most once"),
    ] = Field((0,), description="axes along which patches are mirrored: 0 right, 1 anterior, 2 superior")
    epochs: _Count | None = Field(None, description=f"passes over the cases; {EPOCHS} where `minutes` is not set")
    minutes: Annotated[_Size, BeforeValidator(_number), MustBe("a positive number")] | None = Field(
        None, description="of training, validation included, instead of `epochs`"
    )
    around_labels: _Part = Field(
        2 / 3, description="the part of the patches that hold a label by intent; small where labels fill the scan"
    )
    patches_per_case: _Count = Field(4, description="that an epoch takes of a case")
    batch_size: _Count = Field(2, description="patches of a step, on each device")
    loss: Annotated[Literal["dice_ce", "dice_focal", "generalized_dice", "tversky"], MustBe(_LOSSES)] = Field(
        "dice_ce", description="Dice with cross-entropy or with focal loss, or generalised Dice or Tversky alone"
    )
    class_weights: Annotated[tuple[_NotNegative, ...], MustBe("a list of numbers of at least 0")] | None = Field(
        None, description="of the background and each label, for the loss `dice_ce`"
    )
    start_from: Annotated[str, MustBe("a path")] | None = Field(
        None, description="a run folder, or a checkpoint of PyTorch or safetensors, whose weights training starts with"
    )
    optimizer: Annotated[Literal["adamw", "sgd"], MustBe("adamw or sgd")] = Field(
        "adamw", description="`adamw`, or `sgd` with Nesterov momentum 0.99"
    )
    learning_rate: _Rate = Field(3e-3, description="the highest; it falls to 0 over the budget")
    weight_decay: _NotNegative = Field(1e-2, description="of the optimizer")
    warmup_steps: _Seed = Field(50, description="over which the learning rate rises")
    gradient_clip: _NotNegative = Field(12.0, description="the largest norm of a gradient; 0 for any")
    ema_decay: _Decay = Field(
        0.0, description="of the moving average of the weights, which is validated and kept; 0 for none"
    )
    channels_last: _Flag = Field(False, description="whether channels are the innermost axis in memory")
    validate_every: _Count = Field(5, description="epochs between validations; a budget of `minutes` has five")
    held_out: _Share = Field(0.2, description="the fraction of the cases that the network is validated on")
    split_seed: _Seed = Field(0, description="of the split")
    seed: _Seed = Field(0, description="of the weights and the patches")

    @check_model(mode="before")
    @classmethod
    def _settle(cls, values: Any) -> Any:
        """One budget, no sites without attention, and known names."""
        values = dict(values)
        if values.get("epochs") is not None and values.get("minutes") is not None:
            raise ValueError(
                f"`epochs` and `minutes` are two budgets, got {values['epochs']!r} and {values['minutes']!r}; set one"
            )
        if values.get("epochs") is None and values.get("minutes") is None:
            values["epochs"] = EPOCHS
        if values.get("attention", "") in (None, "none"):
            values |= {"attention": None, "at": ()}
        if values.get("network") is not None:
            one_of("network", values["network"], NETWORKS)
        return values


class Configuration(Settings):
    """A run's settings, those that followed from its data included, and what its data are."""

    network: str
    spacing: _Spacing
    patch_size: _PatchSize
    strides: _PerAxis
    kernels: _PerAxis
    windows: _Windows | None
    data: str = Field(description="the folder of the data set")
    layout: str = Field(description="that it has")
    simulated: bool = Field(description="whether all of it is")
    modality: str = Field(description="CT, MRI or unknown")
    labels: Annotated[Labels, MustBe("`names` with the `values` of each")] = Field(description="that it learns")
    images: _Count = Field(description="files of a case, which become channels")
    versions: dict[str, str] = Field(description="of the libraries")

    @property
    def in_channels(self) -> int:
        """Channels that the network sees."""
        return self.images if self.windows is None else len(self.windows)

    @property
    def out_channels(self) -> int:
        """Channels that the network gives: regions, or labels and the background."""
        return len(self.labels.channels)

    @property
    def budget(self) -> str:
        """What the training lasts, in words."""
        return f"{self.epochs} epochs" if self.minutes is None else f"{self.minutes:g} minutes"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"format": FORMAT, "attn3d": version("attn3d"), **self.model_dump(mode="json")}

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
        if odd := set(cls.model_fields) ^ set(settings):
            raise FileError(path, f"has another set of settings than this version, see {min(odd)!r}")
        try:
            return checked(cls, settings)
        except ValueError as error:
            raise FileError(path, f"was changed to what cannot be: {error}") from error


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Any:
    """Values as settings of a kind.

    Raises:
        ValueError: for the first that cannot be: one sentence with its name, what it must be and what it is.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        raise ValueError(f"has an unknown setting {name!r}; {nearest(name, kind.model_fields)}")
    if not name:
        raise ValueError(str(first["ctx"]["error"]))
    raise ValueError(f"`{name}` {first['msg'].replace('Input should be', 'must be')}, got {values.get(name)!r}")


def settings_from(file: Path | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a YAML or JSON file, overridden by those given.

    Raises:
        FileError: when the file cannot be read, is no mapping or has a setting that is unknown or cannot be.
        ValueError: when a given setting is.
    """
    if file is None:
        return checked(Settings, given)
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(file, f"is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise FileError(file, f"settings by name are needed, got {type(read).__name__}")
    try:
        checked(Settings, read)
    except ValueError as error:
        raise FileError(file, str(error)) from error
    budgets = {"epochs", "minutes"}
    kept = {name: value for name, value in read.items() if name not in budgets or not budgets & set(given)}
    return checked(Settings, kept | dict(given))
