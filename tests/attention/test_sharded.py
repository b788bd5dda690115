"""Attention over ranks gives what it gives on the whole volume.

All cases of a number of ranks run in one start of that many processes with gloo, see `over_ranks.py`.
"""

from __future__ import annotations

import copy
import io
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
from attn3d.attention.dense import dense_bias
from attn3d.attention.sharded.ranks import rows_seen
from attn3d.sharding import shard_over, sum_gradients
from torch import Tensor, nn

import attn3d
from attn3d.attention import Neighborhood, VolumeAttention, Window
from attn3d.layers.norms import BatchNorm
from tests.attention.over_ranks import PATIENCE, work
from tests.configurations import randomise
from tests.marks import some

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
    for _, message in found:
        assert "first spatial axis alone, got (B, *S) [(1, 2, 3, 5), (1, 2, 4, 5)" in message


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


X = torch.randn(2, 8, 5, 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sharing", ["ring", "all_gather"])
def test_copies_work_on_whole_volumes(group: dist.ProcessGroup, sharing: str) -> None:
    net = nn.Sequential(attn3d.NonLocal(3, 8))
    plain = copy.deepcopy(net)
    assert shard_over(net, group, sharing=sharing) is net
    assert net.state_dict().keys() == plain.state_dict().keys()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)]
    for twin in copies:
        assert twin[0].pairwise.ranks is None
        assert twin[0].norm.ranks is None
        torch.testing.assert_close(twin(X), plain(X), rtol=0, atol=0)
    torch.jit.script(copies[0])
    assert net[0].pairwise.ranks is not None
    shard_over(net, None)
    assert net[0].pairwise.ranks is None
    assert net[0].norm.ranks is None


def test_does_not_script(group: dist.ProcessGroup) -> None:
    with pytest.raises(RuntimeError, match="ranks"):
        torch.jit.script(shard_over(attn3d.MultiHeadSelfAttention(3, 8), group))


@pytest.mark.parametrize("sharing", ["ring", "all_gather"])
def test_what_cannot_be_captured_says_so(group: dist.ProcessGroup, sharing: str) -> None:
    module = shard_over(attn3d.NonLocal(3, 8), group, sharing=sharing).eval()
    with pytest.raises(ValueError, match="cannot be traced or exported"):
        torch.jit.trace(module, (X,))
    with pytest.raises(ValueError, match="cannot be traced or exported"):
        torch.export.export(module, (X,))
    with pytest.raises(ValueError, match="no row of weights"):
        module.attention_weights(X)


def test_compiles_around_the_messages(group: dist.ProcessGroup) -> None:
    module = shard_over(attn3d.NonLocal(3, 8), group).eval()
    torch.testing.assert_close(torch.compile(module, backend="eager")(X), module(X))


@pytest.mark.parametrize("options", [{"sharing": "ring"}, {"sharing": "all_gather"}])
def test_a_second_derivative_is_refused(group: dist.ProcessGroup, options: dict[str, str]) -> None:
    module = shard_over(attn3d.NonLocal(3, 8, norm=None), group, **options)
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(module(x).square().sum(), x, create_graph=True)


def test_halves_and_autocast(group: dist.ProcessGroup) -> None:
    plain = randomise(attn3d.NonLocal(3, 8)).eval()
    for sharing in ("ring", "all_gather"):
        module = shard_over(copy.deepcopy(plain), group, sharing=sharing)
        y = module.bfloat16()(X.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), plain(X), rtol=0.1, atol=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(module.float()(X), plain(X), rtol=0.1, atol=0.1)


REFUSED = [
    *[
        (name, {}, "over voxels of other ranks; non_local, mhsa and danet work")
        for name in ("se", "eca", "cbam", "bam", "coord", "sk", "gc")
    ],
    ("non_local", {"sub_sample": True}, r"scope=PooledKeys\(2\)"),
    ("non_local", {"norm": "instance"}, r"norm \(InstanceNorm\).* 'batch' and 'layer' work"),
    ("non_local", {"norm": ("group", {"num_groups": 2})}, r"norm \(GroupNorm\)"),
    ("non_local", {"scope": "axial"}, "scope 'axial'"),
    ("mhsa", {"scope": ("grid", {"size": 2})}, "scope 'grid'"),
    ("mhsa", {"method": "fused"}, "sharing='all_gather'"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED)
def test_what_would_be_wrong_is_refused(
    group: dist.ProcessGroup, name: str, options: dict[str, Any], reason: str
) -> None:
    module = attn3d.create_attention(name, spatial_dims=3, channels=8, **options)
    net = nn.Sequential(attn3d.NonLocal(3, 8), module)
    with pytest.raises(ValueError, match=f"`module` has what would be wrong on shards: 1.*{reason}"):
        shard_over(net, group, sharing="ring")
    assert net[0].pairwise.ranks is None


def test_wrong_arguments(group: dist.ProcessGroup) -> None:
    with pytest.raises(
        TypeError, match=r"`process_group` must be a torch\.distributed\.ProcessGroup or None, got 'gloo'"
    ):
        shard_over(nn.Identity(), "gloo")
    with pytest.raises(ValueError, match="`sharing` got 'rings'; did you mean 'ring'"):
        shard_over(nn.Identity(), group, sharing="rings")
    module = shard_over(attn3d.MultiHeadSelfAttention(3, 8, dropout=0.1), group)
    with pytest.raises(ValueError, match="`dropout`"):
        module(X)
    assert module.eval()(X).shape == X.shape


def test_hosts_that_look_past_the_border_are_named(group: dist.ProcessGroup, recwarn: Any) -> None:
    norms = (nn.SyncBatchNorm(8), BatchNorm(8))
    shard_over(nn.Sequential(nn.Conv3d(8, 8, (1, 3, 3)), *norms, nn.ReLU(), attn3d.NonLocal(3, 8)), group)
    assert not recwarn
    net = nn.Sequential(nn.Conv3d(8, 8, 3), nn.BatchNorm3d(8), nn.MaxPool3d(2), attn3d.NonLocal(3, 8))
    with pytest.warns(UserWarning, match=r"left so: 0 \(Conv3d\), 1 \(BatchNorm3d\), 2 \(MaxPool3d\)$"):
        shard_over(net, group)


SCOPES = [Window(size, shift) for size in (1, 2, 3, 5) for shift in (False, True)]
SCOPES += [Neighborhood(size, dilation) for size in (1, 3, 5) for dilation in (1, 2, 3)]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_rows_stand_for_the_volume(scope: Any) -> None:
    """Every run of rows, on every extent: over the rows that it sees it has the pairs that it has over all."""
    layer = VolumeAttention(1, 1, scope=scope)
    tables = [torch.randn(1, 2 * layer.size[0] - 1)]

    def pairs(extent: int) -> Tensor:
        every = torch.arange(extent)
        bias = dense_bias(every, [extent], layer.kind, layer.size, layer.dilation, layer.shift, tables, None)
        return bias[0, 0].masked_fill(bias[0, 0] < -1e20, float("-inf"))

    whole = {extent: pairs(extent) for extent in range(1, 15)}
    for extent in whole:
        for begin in range(extent):
            for end in range(begin + 1, extent + 1):
                first, last = rows_seen(layer, begin, end, extent)
                assert 0 <= first <= begin
                assert end <= last <= extent
                rows = whole[extent][begin:end]
                beyond = torch.cat([rows[:, :first], rows[:, last:]], 1)
                assert (beyond == float("-inf")).all()
                assert torch.equal(rows[:, first:last], whole[last - first][begin - first : end - first])


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
    module = shard_over(attn3d.NonLocal(3, 8, mode=mode), group).eval()
    with pytest.raises(ValueError, match="a shard has no row of weights: ask a copy"):
        module.attention_weights(X)


def test_parameters_without_a_gradient_are_passed_over(group: dist.ProcessGroup) -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    module(torch.ones(1, 2)).sum().backward()
    sum_gradients(module, group)
    assert torch.equal(module.weight.grad, torch.ones(2, 2))
    assert module.bias.grad is None
