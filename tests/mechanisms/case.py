"""The description of a mechanism for the tests: a `Case` in `tests/mechanisms/cases/<name>.py`, found by its file name.

Every form, mode and published difference is a configuration there, from which most tests take their cases. Widths are
reduced for the few channels of the tests; all other options have their defaults.
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
    """The passes over a map that every implementation of a mechanism needs.

    Attributes:
        forward: number of passes in forward.
        backward: number of passes in backward.
        forward_passes: what they are for; each pass is named by its map, x or y: "means: x; gate: x, y".
        backward_passes: the same for backward, with gradients dx and dy: "gate: dy, x; input: dy, dx".
    """

    forward: int
    backward: int
    forward_passes: str
    backward_passes: str

    @property
    def passes(self) -> int:
        """Forward and backward passes together."""
        return self.forward + self.backward


class PerAxis(NamedTuple):
    """Values of an option that can also be given for each axis."""

    values: Sequence[Any]
    others: Sequence[Any] = ()


def norm_keys(name: str, channels: int) -> str:
    """The checkpoint keys of a batch norm."""
    values = ("weight", "bias", "running_mean", "running_var")
    return ", ".join([*(f"{name}.{value} {channels}" for value in values), f"{name}.num_batches_tracked"])


def as_they_are(parameters: list[Tensor], axes: Any) -> list[Tensor]:
    """Unchanged parameters, for mechanisms without parameters of an axis."""
    return parameters


@dataclass(frozen=True, kw_only=True)
class Case:
    """A mechanism under test.

    Attributes:
        forms: options of each form by its name, "default" first.
        patterns: the same for forms with a pattern of attention that is not global.
        reference: its formula as loops in float64 that share no code with the library:
            `(x, parameters, statistics, training, **options)`, with flat lists of the parameters and of the running
            statistics (mean, variance) in the order of registration.
        count: the number of parameters with default options, from (channels, spatial_dims, variant).
        published: published numbers of parameters: (channels, spatial_dims, options, number).
        alone: for mechanisms with a gating signal, a subclass that only takes x and makes the signal from it.
        keys: the keys and sizes of a checkpoint by form at 8 channels, from (spatial_dims). They must never change.
        plain: the 3-D compact form as it is commonly written, with its parameters in the library's order.
        floor: the passes over a map that bound its time.
        saved: limit of the memory saved for backward beyond input and output, in maps; None for no limit.
        time: limit of the training time, relative to the plain form; None for no limit. For a new mechanism, start from
            the limits of a similar one.
        weights: names and shapes of `attention_weights` at (2, 8, 4, 3, 5), with three queries if it takes any.
        output: the output from x and the weights, if it follows from them; `gated` for gates between 0 and 1.
        identity: the forms that are the identity at the start.
        values: options with invalid values.
        kinds: options with invalid types.
        drawn: values of the options in random configurations, in addition to the common ones of attention.
        smaller: options for quick finite differences.
        smaller_channels: number of channels for quick finite differences.
        is_set: whether the result does not depend on the order of the voxels.
        in_order: forms that process the axes one after the other, so that their order matters.
        permuted: the parameters for permuted axes, from (parameters, order).
        collapses: whether an axis of size 1 can be removed: "always", "in evaluation" or "never".
        without_axis: the parameters without an axis of size 1, from (parameters, axis); it may change its input.
        faults: functions that assert published faults and other properties of this mechanism.
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
    saved: float | None = None
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
    """x times all gates, which must be between 0 and 1."""
    for gate in weights.values():
        assert ((gate > 0) & (gate < 1)).all()
        x = x * gate
    return x


def copy_parameters(plain: nn.Module, ours: nn.Module) -> None:
    """Copies the weights of a plain module to the library's module, in their common order."""
    for parameter, given in zip(ours.parameters(), plain.parameters(), strict=True):
        parameter.data.copy_(given.data.reshape(parameter.shape))
