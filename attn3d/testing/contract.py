"""`check_attention` and the list of its conditions, each a function in one of this folder's other files."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from attn3d.arguments import one_of
from attn3d.testing import compilation, gradients, inputs, numerics, persistence, shapes
from attn3d.testing.subject import Subject, Violation, first_line

CONDITIONS: dict[str, Callable[[Subject], None]] = {
    condition.__name__: condition
    for condition in (
        shapes.shape,
        persistence.deepcopies,
        numerics.evaluation_repeats,  # early, since random outputs fail most of the others
        shapes.sizes,
        shapes.batches,
        shapes.single_voxel_training,
        shapes.wrong_inputs,
        inputs.memory_format,
        inputs.strided_inputs,
        inputs.inputs_unchanged,
        inputs.inplace_host,
        inputs.meta_tensor,
        numerics.dtypes,
        numerics.precision,
        numerics.large_values,
        numerics.autocast,
        numerics.plain_content,
        numerics.independent_samples,
        gradients.parameter_gradients,
        gradients.nonzero_gradients,
        gradients.finite_differences,
        gradients.frozen,
        gradients.checkpointing,
        gradients.deterministic_operators,
        persistence.pickles,
        persistence.state_dict,
        persistence.meta_device,
        compilation.trace,
        compilation.compile_static,
        compilation.compile_dynamic,
        compilation.export,
    )
}
"""Every condition by name, in the order in which they are checked."""

_PREREQUISITES = ("shape", "deepcopies")


class ContractError(AssertionError):
    """Raised if a module breaks the contract of `check_attention`.

    Attributes:
        failures: the errors by condition: a `Violation` with the expected and found values, or an error that the module
            raised.
    """

    def __init__(self, module: str, failures: Mapping[str, Exception], checked: int) -> None:
        self.failures = dict(failures)
        lines = [f"{module} breaks {len(failures)} of the {checked} conditions that were checked:"]
        for name, failure in failures.items():
            sentence = (CONDITIONS[name].__doc__ or "").strip().splitlines()[0]
            found = failure if isinstance(failure, Violation) else Violation("no exception", first_line(failure))
            lines += [f"- {name}: {sentence}", f"    {found}"]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Report:
    """The names of the conditions that were checked, all of which hold, and of those that were skipped."""

    checked: tuple[str, ...]
    skipped: tuple[str, ...]


def check_attention(
    module: nn.Module,
    spatial_dims: int,
    channels: int,
    *,
    checks: str | Iterable[str] | None = None,
    skip: str | Iterable[str] = (),
    zero_gradient: str | Iterable[str] = (),
    backends: str | Iterable[str] = "aot_eager",
) -> Report:
    """Checks that ``module`` fulfils the contract of a mechanism.

    Every condition runs on copies with random parameters, so that modules that start as the identity are tested too.
    ``module`` itself, its training mode, its gradients and the state of the random generators are not changed. All
    failures are collected; the check stops early only if the module cannot be copied or changes the shape of its input.
    `CONDITIONS` lists the conditions, which are described in their docstrings.

    Dropout is set to 0, or to 0.5 where it must have no effect: that of `torch.nn.Dropout`, and numbers that a module
    holds as ``dropout`` or ``drop_prob``. Other random numbers in training may fail conditions.

    The slow conditions, about a second each, are "compile_static", "compile_dynamic" and "export". The first two
    discard everything that the process has compiled.

    A module whose class has ``takes_signal = True`` gets a gating signal that is made from its input: every second
    voxel along every axis, with the module's ``gating_channels``. The names of its parameters then start with
    "module.".

    Args:
        module: a module that maps (B, C, *S) to (B, C, *S), for any S.
        spatial_dims: number of axes in S.
        channels: number of channels C.
        checks: one or several names of conditions to check; all by default.
        skip: one or several names of conditions to skip.
        zero_gradient: names of parameters, as in `named_parameters`, or patterns such as "*.key.bias", whose gradient
            is zero by construction: a key's bias under a softmax, or a convolution's bias before an instance norm. A
            bias before a batch norm need not be listed.
        backends: backends of `torch.compile`; "inductor" takes about a minute longer.

    Returns:
        the names of the conditions that were checked and of those that were skipped.

    Raises:
        ContractError: if a condition does not hold; the message lists all failures.
        TypeError: if ``module`` is not a module.
        ValueError: if ``spatial_dims`` or ``channels`` is out of range, or a name is unknown.

    Examples:
        >>> module = attn3d.SqueezeExcitation(3, 8)
        >>> check_attention(module, 3, 8, checks=("shape", "memory_format")).checked
        ('shape', 'memory_format')
    """
    chosen = [one_of("checks", name, CONDITIONS) for name in (CONDITIONS if checks is None else _several(checks))]
    skip = [one_of("skip", name, CONDITIONS) for name in _several(skip)]
    names = [name for name in CONDITIONS if name in chosen and name not in skip]
    subject = Subject(module, spatial_dims, channels, _several(zero_gradient), _several(backends))
    failures: dict[str, Exception] = {}
    for name in names:
        with subject.random_state_kept(), torch.enable_grad():  # whatever a module or the caller has set
            try:
                CONDITIONS[name](subject)
            except Exception as failure:  # whatever the module raises is a finding, reported below
                failures[name] = failure
                if name in _PREREQUISITES:
                    break
    if failures:
        error = ContractError(type(module).__name__, failures, len(names))
        raise error from next(iter(failures.values()))
    return Report(tuple(names), tuple(name for name in CONDITIONS if name not in names))


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
