"""What a mechanism brings to the tests: one `Case` in `tests/mechanisms/cases/<name>.py`, found by its file's name.

Every form, mode and published difference is a configuration there, from which most tests take their cases. Reduced
widths are a few channels, as the tests have them; nothing else departs from the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

Options = dict[str, Any]

PAPER = {"variant": "paper"}
# Values that options have in random configurations.
REDUCTIONS = [1, 2, 3, 8, 16]
NORMS = ["batch", ("group", {"num_groups": 1}), "instance", "layer", None]


class Floor(NamedTuple):
    """Passes over a map that a mechanism must make, whoever writes it, and which they are."""

    forward: int
    backward: int
    forward_passes: str
    backward_passes: str

    @property
    def passes(self) -> int:
        """Both ways."""
        return self.forward + self.backward


class PerAxis(NamedTuple):
    """Values of an option that may also be given for each axis."""

    values: Sequence[Any]
    others: Sequence[Any] = ()


def norm_keys(name: str, channels: int) -> str:
    """The frozen keys of a batch norm."""
    values = ("weight", "bias", "running_mean", "running_var")
    return ", ".join([*(f"{name}.{value} {channels}" for value in values), f"{name}.num_batches_tracked"])


def as_they_are(parameters: list[Tensor], axes: Any) -> list[Tensor]:
    """Parameters of which none belongs to an axis."""
    return parameters


@dataclass(frozen=True, kw_only=True)
class Case:
    """A mechanism under test.

    Attributes:
        forms: options by the name of the form, "default" first.
        patterns: the same, within patterns of attention that are not global.
        reference: its formula as loops in float64 that share no code with the library:
            `(x, parameters, statistics, training, **options)`, the flat lists of parameters and of running statistics
            (mean, variance) in the order of registration.
        count: the number of parameters of (channels, spatial_dims, variant) with default options.
        published: numbers of parameters that were published: (channels, spatial_dims, options, number).
        alone: where the mechanism takes a gating signal, a subclass of x alone, which makes the signal of it.
        keys: of (spatial_dims), the keys and sizes of a checkpoint by form, at 8 channels: frozen.
        plain: 3-D, compact, as it is commonly written, with its parameters in the library's order.
        floor: the passes over a map that bound its time.
        kept: the most that is kept for backward beyond input and output, in maps; None where it is not asked.
        time: the most time in training beside the plain form; None where it is not asked.
        weights: names and shapes of `attention_weights` at (2, 8, 4, 3, 5), for three queries where there are any.
        output: the output from x and the weights, where it can be had from them.
        identity: the forms that start as the identity.
        values: options that must be refused for their value.
        kinds: options that must be refused for their type.
        drawn: values of the options in random configurations, beside those of attention that all share.
        smaller: options with which finite differences are quick.
        smaller_channels: the same.
        is_set: whether the voxels are a set: in any order they give the same.
        in_order: forms that take the axes one after the other, so that their order matters.
        permuted: the parameters for permuted axes, from (parameters, order).
        collapses: whether an axis of size 1 may be left out: "always", "in evaluation" or "never".
        without_axis: the parameters without an axis of size 1, from (parameters, axis); it may change the given ones.
        faults: published faults and other claims of its own, as functions that assert.
    """

    forms: dict[str, Options]
    reference: Callable[..., Tensor]
    count: Callable[[int, int, str], int]
    keys: Callable[[int], dict[str, str]]
    plain: type[nn.Module]
    floor: Floor
    weights: dict[str, tuple[int, ...]]
    patterns: dict[str, Options] = field(default_factory=dict)
    alone: type[nn.Module] | None = None
    published: Sequence[tuple[int, int, Options, int]] = ()
    kept: float | None = None
    time: float | None = None
    output: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None
    identity: Sequence[str] = ()
    values: Sequence[Options] = ()
    kinds: Sequence[Options] = ()
    drawn: Options = field(default_factory=dict)
    smaller: Options = field(default_factory=dict)
    smaller_channels: int = 4
    is_set: bool = False
    in_order: Sequence[str] = ()
    permuted: Callable[[list[Tensor], Sequence[int]], list[Tensor]] = as_they_are
    collapses: str = "always"
    without_axis: Callable[[list[Tensor], int], list[Tensor]] = as_they_are
    faults: Sequence[Callable[[], None]] = ()


def gated(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """x times all gates."""
    for gate in weights.values():
        assert ((gate > 0) & (gate < 1)).all()
        x = x * gate
    return x


def copy_parameters(plain: nn.Module, ours: nn.Module) -> None:
    """Gives the library's module the weights of a plain one, in their common order."""
    for parameter, given in zip(ours.parameters(), plain.parameters(), strict=True):
        parameter.data.copy_(given.data.reshape(parameter.shape))
