"""Random configurations: Hypothesis draws every option from its possible values.

Each must keep shape, dtype and memory format, be finite, train every parameter, and agree with a second module that
loads its state, computes in float64 and builds all pairs. ``python -m pytest -m nightly`` runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import attn3d
from tests.configurations import OVER_VOXELS, create, randomise, taking
from tests.mechanisms.case import PerAxis
from tests.mechanisms.cases import CASES
from tests.references.plain import largest_divisor

pytestmark = [pytest.mark.nightly, pytest.mark.scorecard("random")]

EXAMPLES = 540  # for each mechanism and number of axes
# Tolerances for rounding errors, relative to the norm of the right result. Norms with statistics of the input amplify
# errors if their few values are almost equal: half precision is not compared there.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 3e-1}
UNSTEADY = {torch.float64: 1e-9, torch.float32: 3e-2}


class Case(NamedTuple):
    """A module and its input."""

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]  # B, C, *S
    dtype: torch.dtype
    layout: str
    training: bool
    seed: int


BACKENDS = ["auto", "chunked", "sdpa", "math"]
BUDGETS = [None, "64MiB", 2**28]


def for_axes(values: list[int], dims: int) -> st.SearchStrategy:
    """One value, or one for each axis."""
    one = st.sampled_from(values)
    return one | st.tuples(*[one] * dims)


def patterns(dims: int, kinds: tuple[str, ...] = ()) -> st.SearchStrategy:
    """Specs of patterns."""
    sizes, dilations = for_axes([1, 2, 3, 4], dims), for_axes([1, 2], dims)
    strided = {"size": for_axes([2, 3, 5], dims), "dilation": dilations, "stride": for_axes([1, 2], dims)}
    found = {
        "global": st.just("global"),
        "axial": st.just("axial"),
        "window": st.fixed_dictionaries({"size": sizes, "shift": st.booleans()}),
        "grid": st.fixed_dictionaries({"size": sizes}),
        "neighborhood": st.fixed_dictionaries({"size": sizes, "dilation": dilations}) | st.fixed_dictionaries(strided),
        "pooled_keys": st.fixed_dictionaries({"stride": sizes}),
    }
    return st.one_of(
        options if kind in ("global", "axial") else st.tuples(st.just(kind), options)
        for kind, options in found.items()
        if not kinds or kind in kinds
    )


def position_biases(pattern: Any) -> list[str | None]:
    kind = pattern if isinstance(pattern, str) else pattern[0]
    every = ["axis", "joint", "continuous"]
    of_kind = {"window": every, "grid": every, "neighborhood": ["axis", "continuous"]}
    return [None, *of_kind.get(kind, [])]


def features(head_dim: int, dims: int) -> st.SearchStrategy:
    """Options for positions, norms and scores of queries and keys."""
    axial, mixed = ["rope"] * (head_dim >= 2 * dims), [("rope", {"mixed": True, "spacing": 1.5})] * (head_dim >= 2)
    return st.fixed_dictionaries(
        {
            "position": st.sampled_from([None, *axial, *mixed]),
            "qk_norm": st.booleans(),
            "scores": st.sampled_from(["dot", "cosine"]),
        }
    )


def values(drawn: list[Any] | PerAxis, dims: int) -> st.SearchStrategy:
    """The values of an option of a case."""
    if isinstance(drawn, PerAxis):
        for_each = for_axes(drawn.values, dims)
        return st.sampled_from(drawn.others) | for_each if drawn.others else for_each
    return st.sampled_from(drawn)


@st.composite
def cases(draw: Callable[..., Any], name: str, dims: int) -> Case:
    channels = draw(st.sampled_from([1, 2, 3, 4, 8, 12]))
    of_case = {option: values(drawn, dims) for option, drawn in CASES[name].drawn.items()}
    variants = {"variant": st.sampled_from(["compact", "paper"])} if name in taking("variant") else {}
    options = draw(st.fixed_dictionaries(variants | of_case))
    if name in OVER_VOXELS:
        kinds: tuple[str, ...] = ()
        if options.get("sub_sample"):
            kinds = ("global",)
        elif options.get("mode") in ("dot_product", "concatenation"):
            kinds = ("global", "pooled_keys")
        options |= {"pattern": draw(patterns(dims, kinds)), "backend": draw(st.sampled_from(BACKENDS))}
        options["memory_budget"] = draw(st.sampled_from(BUDGETS))
    if name in taking("position_bias"):
        options["position_bias"] = draw(st.sampled_from(position_biases(options["pattern"])))
    if name in taking("num_heads"):
        heads = [heads for heads in range(1, channels + 1) if channels % heads == 0]
        options["num_heads"] = draw(st.sampled_from([None, *heads]))
    if name == "mhsa":
        options |= draw(features(channels // (options["num_heads"] or largest_divisor(channels, 8)), dims))
        if options["pattern"] == "global" or options["pattern"][0] == "pooled_keys":
            options["registers"] = draw(st.sampled_from([0, 2]))
    sizes = st.integers(1, {1: 17, 2: 7, 3: 5}[dims])
    shape = (draw(st.integers(0, 3)), channels, *draw(st.tuples(*[sizes] * dims)))
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    layouts = ["contiguous", "strided", "channels_last"]
    if dtype == torch.bfloat16 and dims == 3:
        # On the CPU, PyTorch 2.13 accesses memory out of bounds for the gradient of a kernel in this format, such as
        # `nn.Conv3d(4, 4, 3, padding=1).bfloat16()` on a channels-last (1, 4, 2, 3, 5).
        layouts.remove("channels_last")
    return Case(
        name,
        options,
        shape,
        dtype,
        draw(st.sampled_from(layouts)),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def make(case: Case, **options: Any) -> torch.nn.Module:
    options = case.options | options
    return create(case.name, spatial_dims=len(case.shape) - 2, channels=case.shape[1], **options)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout in memory."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return torch.stack([x, x], -1)[..., 0] if layout == "strided" else x


def run(module: torch.nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output and all gradients, dropping the same weights each time."""
    torch.manual_seed(0)
    output = module(x.requires_grad_())
    wanted = [x, *module.parameters()]
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream.to(output.dtype))]


def refuses(case: Case, error: ValueError) -> bool:
    """Whether the error is that PyTorch's kernel does not support the configuration."""
    return case.options.get("backend") == "sdpa" and "`backend` 'sdpa' does not support" in str(error)


def is_steady(options: dict[str, Any]) -> bool:
    """Whether, in evaluation, nothing is normalised by statistics or lengths of the input."""
    if options.get("qk_norm") or options.get("scores") == "cosine":
        return False
    return options.get("norm", "auto") in ("auto", "batch", None)


def check(case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    x, upstream = (torch.randn(case.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = laid_out(x.to(case.dtype), case.layout)
    module = randomise(make(case).double(), case.seed).to(case.dtype).train(case.training)
    options = {"backend": "math", "memory_budget": None} if case.name in OVER_VOXELS else {}
    twin = make(case, **options).double()
    twin.load_state_dict(module.state_dict())
    twin.train(case.training)

    try:
        found = run(module, x.detach(), upstream)
    except ValueError as error:
        if not refuses(case, error):
            raise
        module = make(case, backend="auto").to(case.dtype).train(case.training)
        module.load_state_dict(twin.state_dict())
        found = run(module, x.detach(), upstream)
    output = found[0]
    assert output.shape == x.shape
    assert all(value.dtype == case.dtype for value in found)
    if case.layout == "contiguous":
        assert output.is_contiguous()
    elif case.layout == "channels_last" and len(case.shape) > 3:
        assert output.movedim(1, -1).is_contiguous()
    names = ["output", "x", *(name for name, _ in module.named_parameters())]
    for name, value in zip(names, found, strict=True):
        assert value.isfinite().all(), name

    expected = run(twin, x.detach().double(), upstream)
    tolerances = TOLERANCES if not case.training and is_steady(case.options) else UNSTEADY
    if case.dtype in tolerances:
        assert_near("output", output, expected[0], tolerances[case.dtype])
    if case.dtype == torch.float64:
        largest = max(float(value.norm()) for value in expected[1:])
        for name, value, right in zip(names[1:], found[1:], expected[1:], strict=True):
            assert_near(f"gradient of {name}", value, right, 1e-7, at_least=1e-3 * largest)
    for (name, value), right in zip(module.named_buffers(), twin.buffers(), strict=True):
        assert_near(name, value, right, TOLERANCES[case.dtype], at_least=1.0)


def assert_near(name: str, found: Tensor, right: Tensor, tolerance: float, at_least: float = 1e-3) -> None:
    error, size = float((found.double() - right).norm()), float(right.double().norm())
    assert error <= tolerance * max(size, at_least), f"{name}: an error of {error:.2g} on {size:.2g}"


@pytest.mark.parametrize(("name", "dims"), list(itertools.product(attn3d.list_attention(), (1, 2, 3))))
def test_random_configurations(name, dims, count_cases):
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(cases(name, dims))
    def holds(case: Case) -> None:
        check(case)
        count_cases()

    holds()
