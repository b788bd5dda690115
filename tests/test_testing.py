"""The contract accepts correct modules and names each fault of the modules here; all mechanisms must keep it."""

import io
import itertools
import warnings

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import attn3d
from attn3d.testing import CONDITIONS, ContractError, check_attention
from tests.configurations import BY_ID, CONFIGURATIONS, EVERY, OF_ONE_MAP, OF_TOKENS, build, taking
from tests.marks import some

C = 8
SLOW = ("compile_static", "compile_dynamic", "export")


class Gate(nn.Module):
    """Squeeze-and-excitation in plain PyTorch, for three axes. It keeps the contract."""

    def __init__(self, hidden=4):
        super().__init__()
        self.squeeze = nn.Linear(C, hidden)
        self.excite = nn.Linear(hidden, C)

    def check(self, x):
        if x.dim() != 5 or x.shape[1] != C or 0 in x.shape[2:]:
            raise ValueError(f"`x` must be (B, {C}, D, H, W), got {tuple(x.shape)}")

    def pool(self, x):
        return x.mean((2, 3, 4))

    def gate(self, x):
        pooled = self.pool(x)
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))[..., None, None, None]

    def forward(self, x):
        self.check(x)
        return x * self.gate(x)


class SelfAttention(nn.Module):
    """Softmax attention over all voxels. It keeps the contract except for the bias of its keys, which has no effect."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(C, C)
        self.key = nn.Linear(C, C)
        self.value = nn.Linear(C, C)

    def weights(self, q, k):
        with torch.autocast("cpu", enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            return (q.to(wide) @ k.to(wide).mT).softmax(-1)

    def forward(self, x):
        Gate.check(self, x)
        tokens = x.flatten(2).mT
        y = self.weights(self.query(tokens), self.key(tokens)).to(x.dtype) @ self.value(tokens).to(x.dtype)
        y = x + y.mT.unflatten(2, x.shape[2:]).to(x.dtype)
        return y if not x.is_contiguous() else y.contiguous()


# Faulty modules, with faults from published code.


class EvenKernel(Gate):
    """An even kernel with half of it as padding makes the volume larger."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(C, C, 4, padding=2, groups=C)

    def forward(self, x):
        return self.conv(super().forward(x))


class GateReturned(Gate):
    def forward(self, x):
        self.check(x)
        return self.gate(x)


class ReturnsAList(Gate):
    def forward(self, x):
        return [super().forward(x)]


class NotCopied(Gate):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class KeepsItsFirstSize(Gate):
    """Divides by the number of voxels of the first volume that it saw."""

    count = None

    def pool(self, x):
        self.count = self.count or x.shape[2] * x.shape[3] * x.shape[4]
        return x.sum((2, 3, 4)) / self.count


class KeepsItsGate(Gate):
    """A tensor with a graph, stored on the module, cannot be deep-copied."""

    def forward(self, x):
        self.last = self.gate(x)
        self.check(x)
        return x * self.last


class PooledBatchNorm(Gate):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def pool(self, x):
        return self.norm(super().pool(x))


class PoolsByTwo(Gate):
    """A window of two does not fit an axis of one."""

    def pool(self, x):
        return super().pool(functional.max_pool3d(x, 2))


class EmptyView(Gate):
    """A size of -1 is ambiguous for an empty tensor."""

    def pool(self, x):
        return x.reshape(x.shape[0], C, -1).mean(-1)


class ViewsItsInput(Gate):
    def pool(self, x):
        return x.view(x.shape[0] * C, x.shape[2] * x.shape[3] * x.shape[4]).mean(-1).view(x.shape[0], C)


class ChecksNothing(Gate):
    def check(self, x):
        pass


class Contiguous(Gate):
    """Loses the memory format of the input."""

    def forward(self, x):
        return super().forward(x).contiguous()


class CleansItsInput(Gate):
    """An in-place operation on the input, although its values do not change."""

    def forward(self, x):
        self.check(x)
        return super().forward(x.detach().nan_to_num_() + (x - x.detach()))


class ReturnsItsSigmoid(Gate):
    """Autograd saves the output, and the network changes it in place."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class PlainTensor(Gate):
    def forward(self, x):
        return super().forward(x.as_subclass(Tensor))


class StaysWide(Gate):
    """Casts to single precision but not back."""

    def forward(self, x):
        y = super().forward(x)
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y


class RoundsItsGate(Gate):
    """Rounds single precision to bfloat16."""

    def gate(self, x):
        gate = super().gate(x)
        return gate.bfloat16().float() if gate.dtype == torch.float32 else gate


class HalfSoftmax(SelfAttention):
    """Products in half precision overflow before the softmax."""

    def weights(self, q, k):
        return (q @ k.mT).softmax(-1)


class AutocastSoftmax(SelfAttention):
    """Casts to single precision, but autocast computes the product in half."""

    def weights(self, q, k):
        return (q.float() @ k.float().mT).softmax(-1) if q.dtype != torch.float64 else (q @ k.mT).softmax(-1)


class DividesByItsSpread(Gate):
    """The standard deviation of a constant is zero."""

    def pool(self, x):
        return super().pool(x) / x.flatten(2).std(-1, correction=0)


class BatchStatistics(Gate):
    """Takes the mean over the samples as well, also in evaluation."""

    def pool(self, x):
        return x.mean((0, 2, 3, 4)).expand(x.shape[0], C)


class DropsInEvaluation(Gate):
    def __init__(self):
        super().__init__()
        self.dropout = 0.1

    def pool(self, x):
        return functional.dropout(super().pool(x), self.dropout)


class DropsByAModuleInEvaluation(Gate):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def pool(self, x):
        return self.drop.train()(super().pool(x))


class SeedsTheGenerator(Gate):
    def pool(self, x):
        torch.manual_seed(0)
        return super().pool(x)


class FreezesItsNorm(Gate):
    """Changes the mode of a part in every forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(C)

    def gate(self, x):
        self.norm.eval()
        return super().gate(self.norm(x))


class CountsInEvaluation(Gate):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class ScalarParameter(Gate):
    """FSDP does not shard a parameter without a dimension."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def gate(self, x):
        return self.alpha * super().gate(x)


class UnusedParameter(Gate):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))


class NoHiddenUnit(Gate):
    """C // reduction is 0, so that the gate is always one half."""

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about this fault
            super().__init__(hidden=0)


class BuiltAndNeverApplied(Gate):
    """A parameter that is multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def gate(self, x):
        return super().gate(x) + 0.0 * self.alpha


class Detached(Gate):
    def gate(self, x):
        return super().gate(x.detach())


class DetachedInTraining(Gate):
    def gate(self, x):
        return super().gate(x.detach() if self.training else x)


class DetachedWhenFrozen(Gate):
    def gate(self, x):
        return super().gate(x if self.squeeze.weight.requires_grad else x.detach())


class CountsItsCalls(Gate):
    """Recomputation in backward gives another result than forward."""

    calls = 0

    def gate(self, x):
        self.calls += self.training
        return super().gate(x) * (1.0 + self.calls)


class AdaptivePooling(Gate):
    def pool(self, x):
        return super().pool(functional.adaptive_avg_pool3d(x, 2))


class ReflectionPadding(Gate):
    def pool(self, x):
        return super().pool(functional.pad(x, (0, 0, 0, 0, 0, int(x.shape[2] > 1)), mode="reflect"))


class HoldsALambda(Gate):
    def __init__(self):
        super().__init__()
        self.activation = lambda x: x

    def pool(self, x):
        return self.activation(super().pool(x))


class LateParameter(Gate):
    """A parameter that the first forward pass creates."""

    def forward(self, x):
        if not hasattr(self, "alpha"):
            self.alpha = nn.Parameter(torch.ones(1, device=x.device, dtype=x.dtype))
        return super().forward(x) * self.alpha


class LooksAtValues(Gate):
    def gate(self, x):
        gate = super().gate(x)
        return gate if gate.numel() == 0 or gate.max().item() < 2.0 else gate / 2.0


class Prints(Gate):
    def gate(self, x):
        gate = super().gate(x)
        print(end="")
        return gate


class DiffersWhenTraced(Gate):
    """Computes another function when traced."""

    def pool(self, x):
        return x.amax((2, 3, 4)) if torch.jit.is_tracing() else super().pool(x)


class FixedBatch(Gate):
    def pool(self, x):
        pooled = super().pool(x)
        return pooled * 1.0 if x.shape[0] == 2 else pooled


class FaultyInThreeWays(ChecksNothing, Contiguous, UnusedParameter):
    pass


# Exactly the conditions that each faulty module fails.
FAULTS = {
    EvenKernel: {"shape"},
    GateReturned: {"shape"},
    ReturnsAList: {"shape"},
    NotCopied: {"shape"},
    KeepsItsFirstSize: {"sizes", "compile_dynamic", "export"},
    KeepsItsGate: {"deepcopies"},
    PooledBatchNorm: {"batches", "single_voxel_training"},
    PoolsByTwo: {"sizes", "single_voxel_training", "deterministic_operators"},
    EmptyView: {"batches"},
    ViewsItsInput: {"memory_format", "strided_inputs", "inputs_unchanged"},
    ChecksNothing: {"wrong_inputs"},
    Contiguous: {"memory_format"},
    CleansItsInput: {"inputs_unchanged", "strided_inputs", "checkpointing"},
    ReturnsItsSigmoid: {"inplace_host"},
    PlainTensor: {"meta_tensor"},
    StaysWide: {"dtypes"},
    RoundsItsGate: {"precision"},
    HalfSoftmax: {"large_values", "autocast"},
    AutocastSoftmax: {"autocast"},
    DividesByItsSpread: {"plain_content", "sizes", "single_voxel_training", "strided_inputs"},
    BatchStatistics: {"independent_samples"},
    DropsInEvaluation: {"evaluation_repeats"},
    DropsByAModuleInEvaluation: {"evaluation_repeats", "inputs_unchanged"},
    SeedsTheGenerator: {"evaluation_repeats"},
    FreezesItsNorm: {"inputs_unchanged"},
    CountsInEvaluation: {"evaluation_repeats"},
    ScalarParameter: {"shape"},
    UnusedParameter: {"parameter_gradients", "nonzero_gradients"},
    NoHiddenUnit: {"nonzero_gradients"},
    BuiltAndNeverApplied: {"nonzero_gradients"},
    Detached: {"finite_differences"},
    DetachedInTraining: {"finite_differences"},
    DetachedWhenFrozen: {"frozen"},
    CountsItsCalls: {"inplace_host", "checkpointing", "state_dict", "finite_differences"},
    AdaptivePooling: {"deterministic_operators"},
    ReflectionPadding: {"deterministic_operators"},
    HoldsALambda: {"pickles"},
    LateParameter: {"state_dict", "evaluation_repeats"},
    LooksAtValues: {"meta_device", "compile_static", "compile_dynamic", "export"},
    Prints: {"compile_static", "compile_dynamic"},
    DiffersWhenTraced: {"trace"},
    FixedBatch: {"compile_dynamic", "export"},
}


def failures(module, **options):
    with pytest.raises(ContractError) as caught:
        check_attention(module, 3, C, **options)
    return caught.value.failures


def zero_gradient(module):
    return ("key.bias",) if isinstance(module, SelfAttention) else ()


@pytest.mark.parametrize("module", [Gate, SelfAttention])
def test_a_correct_module_keeps_the_whole_contract(module):
    module = module()
    report = check_attention(module, 3, C, zero_gradient=zero_gradient(module))
    assert report.checked == tuple(CONDITIONS)
    assert report.skipped == ()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_module_fails_its_conditions_and_no_others(fault):
    module, expected = fault(), FAULTS[fault]
    skip = [name for name in SLOW if not expected & set(SLOW)]
    found = failures(module, skip=skip, zero_gradient=zero_gradient(module))
    assert set(found) == expected, found


class DropsPaths(Gate):
    """Stochastic depth, as in timm and MONAI. It keeps the contract."""

    drop_prob = 0.2

    def gate(self, x):
        gate = super().gate(x)
        if not self.training:
            return gate
        return gate * (torch.rand(x.shape[0], 1, 1, 1, 1, dtype=x.dtype, device=x.device) >= self.drop_prob)


class AddsNoiseInTraining(Gate):
    """It keeps the contract."""

    def gate(self, x):
        return super().gate(x) * (1.0 + 0.1 * torch.rand_like(x) if self.training else 1.0)


class HasASpectralNorm(Gate):
    """In training it updates a vector, through which no gradient flows. It keeps the contract."""

    def __init__(self):
        super().__init__()
        parametrizations.spectral_norm(self.squeeze)


@pytest.mark.parametrize("module", [DropsPaths, AddsNoiseInTraining, HasASpectralNorm])
def test_what_is_random_or_updated_in_training_only_has_right_gradients(module):
    check_attention(module(), 3, C, checks=["finite_differences"])


def test_stochastic_depth_keeps_the_contract():
    check_attention(DropsPaths(), 3, C, skip=SLOW)


class DropsAlways(Gate):
    def forward(self, x):
        return functional.dropout(super().forward(x), 0.5)


@pytest.mark.parametrize(
    ("fault", "condition", "message"),
    [
        (DropsAlways, "evaluation_repeats", "expected a second run to repeat the first, bit by bit"),
        (ReturnsAList, "shape", "expected shape (2, 8, 4, 5, 3), found list"),
        (NotCopied, "shape", "expected a module that can be deep-copied, found TypeError: no copies"),
        (KeepsItsFirstSize, "sizes", "the output for shape (2, 8, 1, 6, 7) not to depend on earlier shapes"),
        (Detached, "finite_differences", "the gradient of the input to agree with finite differences"),
    ],
)
def test_the_first_failure_says_what_is_wrong(fault, condition, message):
    first, error = next(iter(failures(fault(), skip=SLOW).items()))
    assert first == condition
    assert message in str(error)


def test_a_graph_for_one_shape_is_named():
    [failure] = failures(KeepsItsFirstSize(), checks="compile_dynamic").values()
    assert "one graph for both shapes, found a graph that is valid for the first shape only" in str(failure)


class CountsInEagerModeOnly(Gate):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training and not torch.compiler.is_compiling():
            self.seen += 1
        return super().forward(x)


def test_a_buffer_that_compiled_code_does_not_update_is_detected():
    [failure] = failures(CountsInEagerModeOnly(), checks=("compile_dynamic",)).values()
    assert "the buffers after aot_eager to be those after eager" in str(failure)


def test_every_condition_detects_a_fault():
    assert set().union(*FAULTS.values()) == set(CONDITIONS)


@pytest.mark.parametrize("without_effect", [True, False])
def test_a_zero_gradient_is_excused_only_when_named_and_without_effect(without_effect):
    """The bias of the keys has no effect, so its gradient is zero. A detached parameter has an effect."""

    class CutGradient(SelfAttention):
        def forward(self, x):
            y = super().forward(x)
            return y if without_effect else y + self.key.bias.detach().sum() + 0.0 * self.key.bias.sum()

    checks = ("nonzero_gradients",)
    assert "key.bias" in str(failures(CutGradient(), checks=checks)["nonzero_gradients"])
    if without_effect:
        check_attention(CutGradient(), 3, C, checks=checks, zero_gradient=("*.bias", "key.*"))
    else:
        named = failures(CutGradient(), checks=checks, zero_gradient=("key.bias",))
        assert "does not depend on key.bias" in str(named["nonzero_gradients"])


def test_the_error_lists_every_failure_with_what_was_expected_and_found():
    with pytest.raises(ContractError) as caught:
        check_attention(FaultyInThreeWays(), 3, C, skip=SLOW)
    message = str(caught.value)
    assert isinstance(caught.value, AssertionError)
    assert message.startswith(f"FaultyInThreeWays breaks 4 of the {len(CONDITIONS) - len(SLOW)} conditions")
    assert set(caught.value.failures) == {
        "wrong_inputs",
        "memory_format",
        "parameter_gradients",
        "nonzero_gradients",
    }
    for part in (
        "expected a ValueError",
        "found RuntimeError",
        "a gradient for alpha",
        "expected a channels-last output",
    ):
        assert part in message


def test_the_module_and_the_random_state_are_left_as_they_were():
    module = Gate().train()
    module.squeeze.eval()
    module.excite.weight.requires_grad_(False)
    module.squeeze.weight.grad = torch.ones_like(module.squeeze.weight)
    before = {name: (value.clone(), value._version) for name, value in module.state_dict(keep_vars=True).items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_attention(module, 3, C, skip=SLOW)
    assert torch.equal(torch.get_rng_state(), state)
    assert (module.training, module.squeeze.training) == (True, False)
    assert not module.excite.weight.requires_grad
    assert torch.equal(module.squeeze.weight.grad, torch.ones_like(module.squeeze.weight))
    for name, value in module.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]
        assert value.dtype == torch.float32


class DisablesGradients(Gate):
    """In evaluation, for everything that follows."""

    def forward(self, x):
        y = super().forward(x)
        torch.set_grad_enabled(self.training)
        return y


def test_every_condition_runs_with_gradients():
    """Whatever the module did in earlier ones, or the caller's mode is."""
    check_attention(DisablesGradients(), 3, C, checks=("shape", "checkpointing"))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        check_attention(Gate(), 3, C, skip=SLOW)
        assert not torch.is_grad_enabled()


def test_conditions_are_chosen_and_left_out_by_name():
    report = check_attention(Gate(), 3, C, checks=("sizes", "shape", "trace"), skip="trace")
    assert report.checked == ("shape", "sizes")
    assert check_attention(SelfAttention(), 3, C, checks="nonzero_gradients", zero_gradient="key.bias").checked
    assert set(report.checked) | set(report.skipped) == set(CONDITIONS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.ReLU, 3, C), TypeError, "`module` must be a torch.nn.Module, got <class"),
        ((Gate(), 4, C), ValueError, "`spatial_dims` must be 1, 2 or 3, got 4"),
        ((Gate(), 3, 0), ValueError, "`channels` must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        check_attention(*arguments)


class MeanGate(Gate):
    """A module without parameters that keeps the contract."""

    def __init__(self):
        nn.Module.__init__(self)

    def gate(self, x):
        return torch.sigmoid(self.pool(x))[..., None, None, None]


def test_a_module_without_parameters_can_be_checked():
    report = check_attention(MeanGate(), 3, C, skip=SLOW)
    assert "frozen" in report.checked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ("size",)}, "`checks` got 'size'; did you mean 'sizes'?"),
        ({"skip": ("exports",)}, "`skip` got 'exports'; did you mean 'export'?"),
        (
            {"zero_gradient": ("key.bias",)},
            "`zero_gradient` must match a parameter, got 'key.bias'; there are squeeze.weight",
        ),
        ({"backends": "inducter"}, "`backends` got 'inducter'; did you mean 'inductor'?"),
        ({"backends": ()}, "`backends` must have at least one backend of torch.compile, got none"),
    ],
)
def test_an_unknown_name_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_attention(Gate(), 3, C, **options)


# The mechanisms.


def mechanism(configuration, spatial_dims, channels=C, **options):
    return attn3d.create_attention(
        configuration.name, spatial_dims=spatial_dims, channels=channels, **configuration.options | options
    )


def cancelled(module):
    """The parameters without a gradient, because softmax ignores a value that is added to all scores."""
    return [name for name, _ in module.named_parameters() if name.endswith(("key.bias", "score.bias"))]


def identify(value):
    return getattr(value, "id", None)


# The default configuration of each mechanism; and the paper's, which has the most operators, if there is one.
DEFAULTS = [BY_ID[name] for name in attn3d.list_attention()]
FULLEST = [BY_ID.get(f"{name}-paper", BY_ID[name]) for name in attn3d.list_attention()]
DIMS = (1, 2, 3)
SCRIPTED = [one for one in CONFIGURATIONS if one.name in OF_ONE_MAP and one.name not in OF_TOKENS]

# The condition of the scorecard and the number of cases (inputs, views, copies or captures) for each check of the
# contract. For checks that are not listed, other tests count more cases, or the scorecard has no condition.
COUNTED = {
    "memory_format": ("memory", 4),
    "strided_inputs": ("memory", 7),
    "inputs_unchanged": ("memory", 7),
    "frozen": ("memory", 2),
    "checkpointing": ("memory", 1),
    "independent_samples": ("order", 4),
    "plain_content": ("finite", 3),  # in training; tests/mechanisms/test_finite.py has those in evaluation
    "evaluation_repeats": ("repeats", 1),
    "single_voxel_training": ("repeats", 1),
    "deepcopies": ("persistence", 1),
    "pickles": ("persistence", 1),
    "state_dict": ("persistence", 1),
    "meta_device": ("persistence", 2),
    "deterministic_operators": ("operators", 1),
    "trace": ("captures", 1),
}


@pytest.mark.scorecard("memory", "order", "finite", "repeats", "persistence", "operators", "captures")
@pytest.mark.parametrize("spatial_dims", some(DIMS, lambda dims: dims < 3))
@pytest.mark.parametrize(
    "configuration", some(EVERY, lambda one: one not in DEFAULTS and one not in FULLEST), ids=identify
)
def test_every_configuration_keeps_the_contract(configuration, spatial_dims, count_cases):
    module = mechanism(configuration, spatial_dims)
    report = check_attention(module, spatial_dims, C, skip=SLOW, zero_gradient=cancelled(module))
    assert report.skipped == SLOW
    for name, (condition, cases) in COUNTED.items():
        assert name in report.checked
        without_format = name == "memory_format" and spatial_dims == 1  # one axis has no channels-last format
        count_cases(cases // 2 if without_format else cases, condition)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize(
    "cell",
    some(
        itertools.product(CONFIGURATIONS, DIMS),
        lambda cell: cell[0] not in FULLEST or cell[1] < 3 or FULLEST.index(cell[0]) % 3,
    ),
    ids=lambda cell: f"{identify(cell[0])}-{cell[1]}",
)
def test_every_configuration_compiles_and_exports(cell, count_cases):
    """In the default run, the forms with the most operators of every third mechanism, in 3-D."""
    configuration, spatial_dims = cell
    module = mechanism(configuration, spatial_dims)
    check_attention(module, spatial_dims, C, checks=("compile_static", "export"))
    count_cases(2)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize(
    "configuration",
    some(CONFIGURATIONS, lambda one: one.id != "cbam-paper"),
    ids=identify,
)
def test_every_configuration_compiles_in_training_with_dynamic_shapes(configuration):
    check_attention(mechanism(configuration, 3), 3, C, checks=("compile_dynamic",))


@pytest.mark.scorecard("repeats")  # counts the check of a single voxel
@pytest.mark.parametrize("channels", some([1, 3, 33], lambda channels: channels == 3))
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=identify)
def test_any_number_of_channels_keeps_the_contract(configuration, channels):
    checks = ("shape", "sizes", "batches", "single_voxel_training", "memory_format", "plain_content")
    check_attention(mechanism(configuration, 3, channels), 3, channels, checks=checks)


@pytest.mark.scorecard("repeats")  # counts the check of a single voxel
@pytest.mark.parametrize("norm", ["batch", ("group", {"num_groups": 1}), "instance", "layer", None], ids=str)
@pytest.mark.parametrize("name", taking("norm"))
def test_any_norm_keeps_the_contract(name, norm):
    module = attn3d.create_attention(name, spatial_dims=3, channels=C, norm=norm)
    checks = ("shape", "batches", "single_voxel_training", "memory_format", "plain_content", "finite_differences")
    check_attention(module, 3, C, checks=checks)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("configuration", some(DEFAULTS, lambda one: one.name != "se"), ids=identify)
def test_every_mechanism_compiles_with_inductor(configuration):
    """In the default run, only se."""
    check_attention(mechanism(configuration, 3), 3, C, checks=("compile_static",), backends=("inductor",))


@pytest.mark.parametrize("configuration", [one for one in CONFIGURATIONS if one.name in OF_TOKENS], ids=identify)
def test_attention_over_voxels_cannot_be_scripted(configuration):
    with pytest.raises(TypeError, match=r"does not support TorchScript.* use `torch\.jit\.trace`"):
        torch.jit.script(build(configuration, 3, C))


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("configuration", SCRIPTED, ids=identify)
def test_a_script_equals_eager_and_can_be_saved(configuration, spatial_dims):
    module = build(configuration, spatial_dims, C).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.script(module)
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    for batch, size in ((2, (4, 5, 3)), (1, (1, 1, 1)), (3, (3, 7, 6))):
        x = torch.randn(batch, C, *size[:spatial_dims], dtype=torch.float64)
        torch.testing.assert_close(scripted(x), module(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize(
    "configuration", some(CONFIGURATIONS, lambda one: one not in FULLEST or FULLEST.index(one) % 3), ids=identify
)
def test_onnx_equals_eager(configuration, tmp_path):
    module = build(configuration, 3, C).float().eval()
    x = torch.randn(2, C, 4, 6, 5)
    path = tmp_path / "module.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn_like(x)
    (y,) = session.run(["y"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=1e-4, atol=1e-4)
