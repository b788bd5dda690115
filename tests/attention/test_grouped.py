"""The computation of attention in groups: precision, determinism, threads, MetaTensors and few calls."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

import attn3d
from attn3d import Axial, Grid, Neighborhood, Window
from attn3d.attention import VolumeAttention, grouped
from attn3d.distributed.context import Rows
from tests.attention.exactness import error_of, set_tile_bytes
from tests.attention.layers import PATTERNS, Scoped, assert_results, case, results, tokens
from tests.mechanisms.parity import assert_close, volume

ROOT = str(Path(attn3d.__file__).parent)
LOCAL = [scoped for scoped in PATTERNS if scoped.pattern.local]
UNSHARED = [scoped for scoped in LOCAL if scoped.name != "axial"]  # no parts of a softmax to merge


def functions_entered(run):
    """The functions of the library that a call enters, without comprehensions and generator expressions."""
    entered = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and not code.co_name.startswith("<"):
            entered.add((code.co_filename, code.co_qualname))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return entered


def test_a_forward_enters_few_functions():
    net, x = attn3d.NonLocal(3, 64, pattern=Window(4)), torch.randn(1, 64, 8, 8, 8)
    net(x)
    entered = functions_entered(lambda: net(x))
    assert len(entered) <= 20, sorted(entered)
    assert any("grouped" in file for file, _ in entered)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("scoped", [scoped for scoped in LOCAL if scoped.position_bias], ids=str)
def test_a_learnt_bias_uses_the_kernel_in_forward_and_tiles_in_backward(scoped, monkeypatch):
    called = {"kernel": 0, "tiles": 0}

    def counted(name, run):
        def count(*args, **options):
            called[name] += 1
            return run(*args, **options)

        return count

    monkeypatch.setattr(grouped.sdpa, "kernel_forward", counted("kernel", grouped.sdpa.kernel_forward))
    monkeypatch.setattr(grouped.tiled, "backward", counted("tiles", grouped.tiled.backward))
    monkeypatch.setattr(grouped.sdpa, "kernel_backward", None)
    leaves, reference = case(scoped, (5, 7))
    layer = scoped.layer(2)
    assert_results(results(layer(*leaves, [5, 7]), leaves, layer.position_table), reference)
    assert called["kernel"] > 0
    assert called["tiles"] > 0


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("pattern", [Window(4, shift=True), Grid(3), Axial(), Neighborhood(5)], ids=str)
def test_bfloat16_has_at_most_twice_the_error_of_the_plain_form(pattern, backend):
    """Gradients at most three times; root mean squares, relative to the softmax over a group in bfloat16."""
    shape = (6, 9)
    doubles = [volume(2, 2, 54, 16, seed=seed).requires_grad_() for seed in range(3)]
    halves = [leaf.detach().bfloat16().requires_grad_() for leaf in doubles]
    layer = VolumeAttention(2, 2, pattern=pattern, backend=backend)
    exact = [leaf.detach().double().requires_grad_() for leaf in halves]
    bias = layer.bias_of(torch.arange(54), list(shape))

    def plain(q, k, v):
        return (q @ k.mT / 4 + bias.to(q.dtype)).softmax(3) @ v

    upstream = volume(2, 2, 54, 16, seed=7).bfloat16()
    expected, found, same = (
        [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]
        for out, leaves in (
            (plain(*exact), exact),
            (layer(*halves, list(shape)), halves),
            (plain(*halves), halves),
        )
    )
    for place, (reference, ours, theirs) in enumerate(zip(expected, found, same, strict=True)):
        assert error_of(ours, reference) <= (2 if place == 0 else 3) * error_of(theirs, reference)


@pytest.mark.parametrize("scoped", LOCAL, ids=str)
def test_backward_is_deterministic(scoped, monkeypatch):
    set_tile_bytes(monkeypatch, 5_000)
    leaves, layer = tokens((5, 7)), scoped.layer(2)
    first, second = (results(layer(*leaves, [5, 7]), leaves, layer.position_table) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def filled_memory():
    """Memory that is not initialised holds nan."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_tokens_that_belong_to_no_group_have_a_gradient_of_zero(backend):
    """A shard of a volume has rows without queries, as padding."""
    leaves = [volume(1, 2, 8, 4, seed=seed).requires_grad_() for seed in range(3)]
    layer = VolumeAttention(1, 2, pattern=Rows(Window(4), 8, 0, (0, 2)), backend=backend)
    grad_q, *_ = torch.autograd.grad(layer(*leaves, [8])[:, :, :2].sum(), leaves)
    assert grad_q.isfinite().all()
    assert (grad_q[:, :, 2:] == 0).all()


@pytest.mark.usefixtures("on_the_cpu")
def test_backward_recomputes_with_the_bias_of_forward():
    """The kernel rounds the bias to the dtype of the queries: all weights of a query still sum to 1 in backward."""
    layer = VolumeAttention(1, 1, pattern=Window(8), position_bias="axis")
    torch.nn.init.normal_(layer.position_table, std=30.0)
    q, k = (torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16) for _ in range(2))
    v = torch.eye(8, dtype=torch.bfloat16)[None, None].requires_grad_()
    out = layer(q, k, v, [8])
    upstream = torch.ones_like(out)
    (grad_v,) = torch.autograd.grad(out, v, upstream)
    torch.testing.assert_close(grad_v[0, 0, :, 0], out[0, 0].sum(0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pattern", ["global", Window(3, shift=True), Axial(), Neighborhood(3)], ids=str)
def test_threads_do_not_see_each_other(pattern):
    """Forward passes with different values and sizes at the same time."""
    layer = Scoped(pattern).layer(2) if not isinstance(pattern, str) else VolumeAttention(2, 2)
    inputs = [(tokens(shape), list(shape)) for shape in ((5, 7), (6, 4))] * 8
    expected = [layer(*leaves, shape).detach() for leaves, shape in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: layer(*one[0], one[1]).detach(), inputs))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
@pytest.mark.parametrize("name", ["non_local", "mhsa", "danet"])
def test_a_metatensor_gives_a_metatensor(name, scoped):
    """It keeps its affine; values and gradients are those of a tensor."""
    options = {"position_bias": scoped.position_bias} if name == "mhsa" else {}
    net = attn3d.create_attention(name, spatial_dims=3, channels=4, pattern=scoped.pattern, **options)
    x = torch.randn(1, 4, 4, 5, 3)
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
    given = MetaTensor(x, affine=affine).requires_grad_()
    found = net(given)
    assert type(found) is MetaTensor
    assert torch.equal(found.affine.cpu(), affine.cpu().to(found.affine.dtype))
    assert_close(found.as_tensor(), net(x), 1e-6)
    found.as_tensor().sum().backward()
    assert given.grad is not None


@pytest.mark.parametrize("scoped", LOCAL, ids=str)
def test_a_volume_of_one_voxel(scoped):
    """The output is the value of the voxel."""
    q, k, v = (volume(2, 2, 1, 4, seed=seed) for seed in range(3))
    for backend in ("auto", "chunked", "math"):
        assert_close(scoped.layer(3, backend=backend)(q, k, v, [1, 1, 1]), v, 1e-14)
