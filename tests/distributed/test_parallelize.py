"""Context-parallel attention equals attention on the whole volume.

For each number of ranks, one group of gloo processes runs all cases; see `over_ranks.py`.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.blocks import SpatialAttentionBlock
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import attn3d
from attn3d.attention import VolumeAttention
from attn3d.attention.captured import attend_captured
from attn3d.distributed.context import Rows, rows_seen
from attn3d.layers.norms import BatchNorm
from attn3d.mechanisms.non_local import Concatenation
from tests.configurations import OVER_VOXELS, randomise
from tests.distributed.over_ranks import PATIENCE, work
from tests.marks import some
from tests.mechanisms.cases import CASES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ranks", some([2, 4], lambda ranks: ranks > 2))
def test_shards_equal_the_whole(ranks: int, tmp_path: Path) -> None:
    processes = mp.spawn(work, (ranks, str(tmp_path)), ranks, join=False)
    end = time.monotonic() + PATIENCE
    while not processes.join(1):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            pytest.fail("the ranks wait for each other")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    failures = []
    for case in found[0][0]:
        errors = {name: max(results[case][name] for results, _ in found) for name in found[0][0][case]}
        if errors.pop("alone", 1.0) < 1e-3:
            failures.append(f"{case}: each rank alone gives the same")
        tolerance = 1e-6 if "single precision" in case else 1e-9
        worst = {name: value for name, value in errors.items() if value > tolerance}
        if worst:
            failures.append(f"{case}: {worst}")
    assert not failures, "\n".join(failures)
    for _, (unlike, over_budget) in found:
        assert "only in its first spatial axis, got (B, *S) [(1, 2, 3, 5), (1, 2, 4, 5)" in unlike
        assert "`memory_budget` must be at least" in over_budget
        assert "bytes, got 8192" in over_budget


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


X = torch.randn(2, 8, 5, 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rotate", ["ring", "all_gather"])
def test_copies_work_on_whole_volumes(group: dist.ProcessGroup, rotate: str) -> None:
    net = nn.Sequential(attn3d.NonLocal(3, 8), attn3d.ChannelAttention(3, 8))
    plain = copy.deepcopy(net)
    assert attn3d.parallelize_attention(net, group, rotate=rotate) is net
    assert classes(net).isdisjoint(
        classes(plain) - {nn.Sequential, attn3d.NonLocal, attn3d.ChannelAttention, nn.Linear}
    )
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)]
    for twin in [*copies, attn3d.parallelize_attention(net, None)]:
        assert classes(twin) == classes(plain)
        assert vars(twin[0].pairwise).keys() == vars(plain[0].pairwise).keys()
        torch.testing.assert_close(twin(X), plain(X), rtol=0, atol=0)


def classes(net: nn.Module) -> set[type]:
    return {type(part) for part in net.modules()}


def test_parameters_keys_and_hooks_stay(group: dist.ProcessGroup) -> None:
    net = attn3d.NonLocal(3, 8, mode="concatenation")
    keys, parameters, calls = list(net.state_dict()), list(net.parameters()), []
    net.pairwise.register_forward_hook(lambda *_: calls.append("called"))
    for _ in range(2):  # a second call changes nothing
        attn3d.parallelize_attention(net, group)
    assert list(net.state_dict()) == keys
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    net(X)
    assert calls == ["called"]
    assert isinstance(net.pairwise, Concatenation)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_pytorchs(group: dist.ProcessGroup, momentum: float | None) -> None:
    norm = attn3d.parallelize_attention(BatchNorm(8, momentum=momentum, affine=False), group)
    theirs = nn.BatchNorm3d(8, momentum=momentum, affine=False)
    for x in (X, 2 * X + 1):
        torch.testing.assert_close(norm(x), theirs(x))
    single = X[:1, :, :1, :1, :1]
    torch.testing.assert_close(norm(single), theirs.eval()(single))
    torch.testing.assert_close(norm.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("rotate", ["ring", "all_gather"])
def test_captures_and_rows_of_weights_raise(group: dist.ProcessGroup, rotate: str) -> None:
    module = attn3d.parallelize_attention(attn3d.NonLocal(3, 8), group, rotate=rotate).eval()
    with pytest.raises(ValueError, match="cannot be traced or exported"):
        torch.jit.trace(module, (X,))
    with pytest.raises(ValueError, match="cannot be traced or exported"):
        torch.export.export(module, (X,))
    with pytest.raises(ValueError, match="rows of weights"):
        module.attention_weights(X)


def test_compiles_around_the_messages(group: dist.ProcessGroup) -> None:
    module = attn3d.parallelize_attention(attn3d.NonLocal(3, 8), group).eval()
    torch.testing.assert_close(torch.compile(module, backend="eager")(X), module(X))


@pytest.mark.parametrize("options", [{"rotate": "ring"}, {"rotate": "all_gather"}])
def test_a_second_derivative_is_refused(group: dist.ProcessGroup, options: dict[str, str]) -> None:
    module = attn3d.parallelize_attention(attn3d.NonLocal(3, 8, norm=None), group, **options)
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(module(x).square().sum(), x, create_graph=True)


def test_halves_and_autocast(group: dist.ProcessGroup) -> None:
    plain = randomise(attn3d.NonLocal(3, 8)).eval()
    for rotate in ("ring", "all_gather"):
        module = attn3d.parallelize_attention(copy.deepcopy(plain), group, rotate=rotate)
        y = module.bfloat16()(X.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), plain(X), rtol=0.1, atol=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(module.float()(X), plain(X), rtol=0.1, atol=0.1)


REFUSED = [
    *[
        (name, {}, "over voxels of other ranks; use attention over voxels or channels")
        for name in CASES
        if name not in (*OVER_VOXELS, "channel")
    ],
    ("non_local", {"sub_sample": True}, r"pattern=PooledKeys\(2\)"),
    ("non_local", {"norm": "instance"}, r"norm \(InstanceNorm\).* 'batch' or 'layer'"),
    ("non_local", {"norm": ("group", {"num_groups": 2})}, r"norm \(GroupNorm\)"),
    ("mhsa", {"backend": "sdpa"}, "rotate='all_gather'"),
    ("mhsa", {"registers": 2}, "whose `registers` are not supported by rotate='ring'"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED)
def test_modules_that_would_be_wrong_on_shards_are_refused(
    group: dist.ProcessGroup, name: str, options: dict[str, Any], reason: str
) -> None:
    module = attn3d.create_attention(name, spatial_dims=3, channels=8, **options)
    net = nn.Sequential(attn3d.NonLocal(3, 8), module)
    with pytest.raises(ValueError, match=f"`net` has modules that would be wrong on shards: 1.*{reason}"):
        attn3d.parallelize_attention(net, group, rotate="ring")
    assert type(net[0].pairwise) is VolumeAttention


@pytest.mark.parametrize("name", ["mhsa", "non_local", "paired"])
def test_a_key_mask_is_refused(group: dist.ProcessGroup, name: str) -> None:
    module = attn3d.create_attention(name, spatial_dims=3, channels=8)
    attn3d.parallelize_attention(module, group)
    with pytest.raises(ValueError, match="`key_mask` must be None over shards: crop the padding"):
        module(X, torch.ones(2, 5, 4, 3, dtype=torch.bool))


def test_a_key_mask_of_channels_is_that_of_the_shard(group: dist.ProcessGroup) -> None:
    """The mask selects the voxels in a sum, and each rank sums over its own voxels."""
    module, mask = randomise(attn3d.ChannelSelfAttention(3, 8, num_heads=2)), X[:, 0] > 0
    expected = module(X, mask)
    torch.testing.assert_close(attn3d.parallelize_attention(module, group)(X, mask), expected)
    assert not torch.allclose(module(X), expected)


def test_wrong_arguments(group: dist.ProcessGroup) -> None:
    with pytest.raises(
        TypeError, match=r"`process_group` must be a torch\.distributed\.ProcessGroup or None, got 'gloo'"
    ):
        attn3d.parallelize_attention(nn.Identity(), "gloo")
    with pytest.raises(ValueError, match="`rotate` got 'rings'; did you mean 'ring'"):
        attn3d.parallelize_attention(nn.Identity(), group, rotate="rings")
    module = attn3d.parallelize_attention(attn3d.MultiHeadSelfAttention(3, 8, dropout=0.1), group)
    with pytest.raises(ValueError, match="`dropout`"):
        module(X)
    assert module.eval()(X).shape == X.shape


def test_layers_that_need_voxels_of_other_ranks_are_named(group: dist.ProcessGroup, recwarn: Any) -> None:
    norms = (nn.SyncBatchNorm(8), BatchNorm(8))
    attn3d.parallelize_attention(
        nn.Sequential(nn.Conv3d(8, 8, (1, 3, 3)), *norms, nn.ReLU(), attn3d.NonLocal(3, 8)), group
    )
    assert not recwarn
    net = nn.Sequential(nn.Conv3d(8, 8, 3), nn.BatchNorm3d(8), nn.MaxPool3d(2), attn3d.NonLocal(3, 8))
    with pytest.warns(UserWarning, match=r"not changed: 0 \(Conv3d\), 1 \(BatchNorm3d\), 2 \(MaxPool3d\)$"):
        attn3d.parallelize_attention(net, group)
    block = SpatialAttentionBlock(3, 8, norm_num_groups=1)
    for part in (block, checkpoint_wrapper(block)):
        net = nn.Sequential(part, nn.MultiheadAttention(8, 1))
        with pytest.warns(UserWarning, match=r"0.attn \(SABlock\), 1 \(MultiheadAttention\)$"):
            attn3d.parallelize_attention(net, group)
    net = nn.Sequential(*(nn.Conv3d(8, 8, 3) for _ in range(7)), attn3d.NonLocal(3, 8))
    with pytest.warns(UserWarning, match=r"not changed: 0 \(Conv3d\), .*, 4 \(Conv3d\) and 2 more$"):
        attn3d.parallelize_attention(net, group)


PATTERNS = [attn3d.Window(size, shift) for size in (1, 2, 3, 5) for shift in (False, True)]
PATTERNS += [attn3d.Neighborhood(size, dilation) for size in (1, 3, 5) for dilation in (1, 2, 3)]
PATTERNS += [attn3d.Neighborhood(4), attn3d.Neighborhood(4, 2, 3), attn3d.Neighborhood(5, stride=5)]
PATTERNS += [attn3d.Grid(2), attn3d.Grid(3), attn3d.Axial()]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_restricted_to_rows(pattern: Any) -> None:
    """Restricted to the rows that it sees, each range of rows has the same pairs as in the whole volume."""
    for extent in range(1, 12):
        [[(seen, distance)]] = pattern.relations((extent,))
        for begin, end in itertools.combinations(range(extent + 1), 2):
            first, last = rows_seen(pattern, (begin, end), (extent,))
            assert 0 <= first <= begin < end <= last <= extent
            assert not seen[begin:end, :first].any()
            assert not seen[begin:end, last:].any()
            [[(there, steps)]] = Rows(pattern, extent, first, (begin, end)).relations((last - first,))
            own = slice(begin - first, end - first)
            assert torch.equal(there[own], seen[begin:end, first:last])
            assert torch.equal(steps[own][there[own]], distance[begin:end, first:last][there[own]])
            assert not there[: own.start].any()
            assert not there[own.stop :].any()


@pytest.mark.parametrize("pattern", [attn3d.Window(3, True), attn3d.Neighborhood(3, 2), attn3d.Grid(2), attn3d.Axial()])
def test_rows_in_the_captured_form(pattern: Any) -> None:
    """The captured form is used on CUDA; this test needs no CUDA."""
    shape, (begin, end) = (7, 3, 2), (2, 5)
    q, k, v = torch.randn(3, 2, 2, 42, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first, last = rows_seen(pattern, (begin, end), shape)
    there = slice(6 * first, 6 * last)
    rows = Rows(pattern, 7, first, (begin, end))
    own = (x[:, :, there] for x in (q, k, v))
    found = attend_captured(*own, (last - first, 3, 2), rows, lambda _: None, None, 0.5, 0.0)[
        :, :, 6 * (begin - first) :
    ]
    found = found[:, :, : 6 * (end - begin)]
    whole = attend_captured(q, k, v, shape, pattern, lambda _: None, None, 0.5, 0.0)[:, :, 6 * begin : 6 * end]
    torch.testing.assert_close(found, whole)
    for grad, wanted in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, whole)), strict=True):
        torch.testing.assert_close(grad, wanted)


def test_the_example_runs() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "examples" / "sharded_volume.py"), "12", "8", "8"]
    done = subprocess.run(
        command + script, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2: rows 0 to 6" in done.stdout
    assert "rank 1 of 2: rows 6 to 12" in done.stdout
    assert done.stdout.count("differs from the whole by") == 2


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product", "concatenation"])
def test_a_shard_has_no_row_of_weights(group: dist.ProcessGroup, mode: str) -> None:
    module = attn3d.parallelize_attention(attn3d.NonLocal(3, 8, mode=mode), group).eval()
    with pytest.raises(ValueError, match="rows of weights are not available for a shard: use a copy"):
        module.attention_weights(X)


def test_parameters_without_a_gradient_are_skipped(group: dist.ProcessGroup) -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    module(torch.ones(1, 2)).sum().backward()
    attn3d.sum_gradients(module, group)
    assert torch.equal(module.weight.grad, torch.ones(2, 2))
    assert module.bias.grad is None


@pytest.mark.parametrize("rotate", ["ring", "all_gather"])
def test_one_rank_equals_the_whole_volume(group: dist.ProcessGroup, rotate: str) -> None:
    """With a single rank, nothing is communicated."""
    torch.manual_seed(0)
    plain = randomise(attn3d.NonLocal(3, 8)).double().eval()
    module = attn3d.parallelize_attention(copy.deepcopy(plain), group, rotate=rotate)
    found, expected = (X.double().requires_grad_() for _ in range(2))
    torch.testing.assert_close(module(found), plain(expected))
    module(found).square().sum().backward()
    plain(expected).square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_a_cumulative_mean_in_half_precision_of_many_batches(group: dist.ProcessGroup) -> None:
    """Their number is past the largest number in half precision."""
    norm = attn3d.parallelize_attention(BatchNorm(2, momentum=None, affine=False), group).half()
    norm.num_batches_tracked.fill_(69_999)
    norm(torch.full((1, 2, 2, 2, 2), 30_000.0).half())
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 30_000 / 70_000).half(), rtol=0.01, atol=0)
