"""Estimated costs, compared with measured ones."""

import pytest
import torch

import attn3d
from attn3d import planning
from attn3d.planning import free_memory, plan
from tests.marks import some
from tests.mechanisms import cases
from tests.memory import peak

PATTERNS = [
    "global",
    ("window", {"size": 6}),
    ("window", {"size": 6, "shift": True}),
    ("grid", {"size": 6}),
    "axial",
    ("neighborhood", {"size": 3}),
    ("pooled_keys", {"stride": 3}),
]
CASES = [
    (pattern, backend)
    for pattern in PATTERNS
    for backend in ("sdpa", "chunked", "math")
    if (pattern, backend) != ("axial", "sdpa")
]


def pass_over(module: torch.nn.Module, x: torch.Tensor, training: bool, *signal: torch.Tensor) -> None:
    if training:
        y = module(x, *signal)
        y.backward(torch.ones_like(y))
        for given in (x, *signal):
            given.grad = None
        module.zero_grad()
    else:
        with torch.no_grad():
            module(x, *signal)


@pytest.mark.parametrize("training", some([False, True], lambda training: not training), ids=["forward", "training"])
@pytest.mark.parametrize(("pattern", "backend"), CASES, ids=str)
def test_memory_is_estimated_within_a_tenth(pattern, backend, training):
    shape = (1, 32, 12, 12, 12)
    module = attn3d.NonLocal(3, 32, pattern=pattern, backend=backend).train(training)
    x = torch.randn(shape, requires_grad=training)
    pass_over(module, x, training)  # the first call makes lasting allocations
    real = peak(lambda: pass_over(module, x, training))
    told = attn3d.estimate_memory(module, shape, training=training)
    assert told == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    "pattern", some(["global", "axial", ("window", {"size": 6})], lambda pattern: pattern == "axial")
)
def test_memory_with_dropout_is_estimated(pattern):
    """Masks of dropout have the size of a tile."""
    shape = (1, 16, 8, 8, 8)
    module = attn3d.MultiHeadSelfAttention(3, 16, num_heads=2, pattern=pattern, dropout=0.2)
    x = torch.randn(shape, requires_grad=True)
    pass_over(module, x, True)
    real = peak(lambda: pass_over(module, x, True))
    assert attn3d.estimate_memory(module, shape) == pytest.approx(real, rel=0.1)


# Without selective kernels, whose convolutions need memory.
@pytest.mark.parametrize("name", [name for name, case in cases.CASES.items() if case.saved and name != "sk"])
def test_memory_of_the_light_mechanisms_is_estimated_from_above(name):
    # Autograd adds real gradients in place, but not fake ones, so the estimate has one map more (of three or four).
    shape = (1, 32, 16, 16, 16)
    module = attn3d.create_attention(name, spatial_dims=3, channels=32)
    x = torch.randn(shape, requires_grad=True)
    signal = [torch.randn(1, 32, 8, 8, 8, requires_grad=True)] if getattr(module, "takes_signal", False) else []
    pass_over(module, x, True, *signal)
    real = peak(lambda: pass_over(module, x, True, *signal))
    assert 0.95 * real <= attn3d.estimate_memory(module, shape) <= 1.35 * real


@pytest.fixture
def two_threads():
    """On a single thread, PyTorch 2.13 unfolds the input of some small convolutions, which needs more memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("name", ["attention_gate", "channel", "cpca", "danet", "lka", "mhsa", "paired", "triplet"])
def test_memory_of_mechanisms_with_wide_maps_is_estimated(name, training, two_threads):
    shape, coarse = (1, 64, 20, 20, 8), (1, 64, 10, 10, 4)
    module = attn3d.create_attention(name, spatial_dims=3, channels=64).train(training)
    given = [shape, coarse] if getattr(module, "takes_signal", False) else [shape]
    inputs = [torch.randn(one, requires_grad=training) for one in given]
    pass_over(module, inputs[0], training, *inputs[1:])
    real = peak(lambda: pass_over(module, inputs[0], training, *inputs[1:]))
    least = 0.92 if name == "danet" else 0.99
    assert least * real <= attn3d.estimate_memory(module, shape, training=training) <= 1.1 * real


def test_batch_norms_with_the_mean_of_all_batches_cost_the_same():
    costs = [
        attn3d.estimate_cost("non_local", (2, 8, 4, 4, 4), norm=("batch", {"momentum": momentum}))
        for momentum in (0.1, None)
    ]
    assert costs[0] == costs[1]


def test_a_volume_that_fits_no_machine_is_planned():
    shape = (1, 64, 96, 96, 96)
    voxels = 96**3
    chunked = attn3d.estimate_memory("non_local", shape, backend="chunked")
    reference = attn3d.estimate_memory("non_local", shape, backend="math")
    assert reference > 2 * 4 * voxels**2
    assert chunked < 12 * 4 * 64 * voxels


def test_a_module_is_not_changed():
    module = attn3d.NonLocal(3, 8)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    attn3d.estimate_memory(module, (1, 8, 6, 6, 6))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_with_a_plain_tensor_attribute_is_estimated():
    """MONAI's DynUNet has such tensors for its heads."""

    class Remembering(attn3d.SqueezeExcitation):
        def __init__(self):
            super().__init__(3, 8)
            self.last = [torch.rand(1)]

    assert attn3d.estimate_memory(Remembering(), (1, 8, 4, 4, 4)) > 0


def test_operations_of_backends_agree():
    costs = [
        attn3d.estimate_cost("non_local", (1, 16, 8, 8, 8), training=False, backend=backend).flops
        for backend in ("sdpa", "chunked", "math")
    ]
    assert costs[0] == costs[1] == costs[2]


def test_a_window_costs_less_than_the_whole():
    def operations(pattern):
        return attn3d.estimate_cost("mhsa", (1, 32, 16, 16, 16), pattern=pattern, backend="chunked").flops

    assert operations(("window", {"size": 4})) < operations("global") / 4


def test_plan_says_what_fits():
    rows = {(row.pattern, row.backend): row for row in plan((16, 16, 16), 16, memory="64MiB")}
    assert rows["global", "chunked"].fits
    assert not rows["global", "math"].fits
    assert ("axial", "sdpa") in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (16, 0, 16), "channels": 8}, "`shape` must be at least 1, got 0"),
        ({"shape": 8, "channels": 16}, r"`shape` must be one to three sizes, such as \(96, 96, 96\), got 8"),
        ({"shape": (), "channels": 8}, r"`shape` must be one to three sizes, such as \(96, 96, 96\), got \(\)"),
        ({"shape": (8, 8, 8), "channels": 0}, "`channels` must be at least 1, got 0"),
        ({"shape": (8, 8, 8), "channels": 8, "mechanism": "se"}, "`mechanism` got 'se'"),
        ({"shape": (8, 8, 8), "channels": 8, "memory": "8 bananas"}, "`memory` must be bytes"),
    ],
)
def test_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        list(plan(**arguments))


def test_free_memory_includes_the_cache_that_linux_gives_back(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planning, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       9 kB\nMemFree:        2 kB\nMemAvailable:   7 kB\n")
    assert free_memory() == 7 * 1024


def test_plan_asks_for_the_memory_of_a_system_that_does_not_tell_it(monkeypatch, tmp_path):
    """Windows and macOS have no /proc/meminfo."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planning, "MEMINFO", tmp_path / "meminfo")
    with pytest.raises(ValueError, match='`memory` must be given on this machine, such as "8GiB"'):
        next(plan((8, 8, 8), 8))
    assert next(plan((8, 8, 8), 8, memory="8GiB")).fits


def test_free_memory_is_that_of_the_gpu_where_there_is_one(monkeypatch):
    assert free_memory() > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (123, 456))
    assert free_memory() == 123


def test_frozen_parameters_have_no_gradient_to_compute():
    shape, module = (1, 8, 6, 6, 6), attn3d.LargeKernelAttention(3, 8)
    trained = attn3d.estimate_cost(module, shape).flops
    forward = attn3d.estimate_cost(module, shape, training=False).flops
    frozen = attn3d.estimate_cost(module.requires_grad_(False), shape).flops
    assert forward < frozen < trained


@pytest.mark.parametrize(
    ("mechanism", "shape", "options", "error", "message"),
    [
        ("se", (1, 8), {}, ValueError, r"`shape` must be \(B, C, \*S\) with one to three sizes in S, got \(1, 8\)"),
        ("se", 8, {}, ValueError, r"`shape` must be \(B, C, \*S\) .* got 8"),
        ("se", (1, 8, 4.0), {}, TypeError, r"`shape` must be an integer, got 4\.0"),
        ("SE", (1, 8, 4), {}, ValueError, "`mechanism` must be a registered .* got 'SE'; did you mean 'se'"),
        ("se", (1, 8, -4), {}, ValueError, "`shape` must be at least 0, got -4"),
        (attn3d.SqueezeExcitation(3, 8), (1, 8, 4, 4, 4), {"reduction": 2}, TypeError, "a module has its own already"),
    ],
)
def test_estimates_refuse(mechanism, shape, options, error, message):
    with pytest.raises(error, match=message):
        attn3d.estimate_memory(mechanism, shape, **options)
