"""Attention over ranks gives what it gives on the whole volume.

All cases of a number of ranks run in one start of that many processes with gloo, and every rank computes the
whole volume itself to compare its shard with.
"""

from __future__ import annotations

import copy
import datetime
import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import attn3d
from attn3d.attention import Neighborhood, VolumeAttention, Window
from attn3d.attention.dense import dense_bias
from attn3d.attention.sharded.ranks import rows_seen
from attn3d.sharding import shard_over, sum_gradients
from tests.configurations import randomise

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds after which processes that wait for each other are ended


class Case(NamedTuple):
    """A mechanism, the volume it sees and how that is cut."""

    mechanism: Any
    options: dict[str, Any]
    shape: tuple[int, ...] = (2, 6, 11, 3, 4)
    sharing: str = "all_gather"
    rows: tuple[int, ...] | None = None  # of every rank; by default as equal as can be
    training: bool = True
    differs_alone: bool = True  # whether a rank that knows of no other would give something else


def window(size: Any, shift: bool = False) -> dict[str, Any]:
    """The option of a window scope."""
    return {"scope": ("window", {"size": size, "shift": shift})}


def neighborhood(size: Any, dilation: Any = 1) -> dict[str, Any]:
    """The option of a neighbourhood scope."""
    return {"scope": ("neighborhood", {"size": size, "dilation": dilation})}


def pooled(stride: Any) -> dict[str, Any]:
    """The option of a scope of pooled keys."""
    return {"scope": ("pooled_keys", {"stride": stride})}


class Network(nn.Sequential):
    """Attention of several kinds among layers that treat every voxel alone."""

    def __init__(self, spatial_dims: int, channels: int, checkpointed: bool = False) -> None:
        super().__init__(
            nn.Conv3d(channels, 8, 1),
            attn3d.NonLocal(spatial_dims, 8),
            nn.ReLU(),
            attn3d.MultiHeadSelfAttention(spatial_dims, 8, **window(3, shift=True)),
            attn3d.NonLocal(spatial_dims, 8, mode="gaussian", norm="layer"),
            nn.Conv3d(8, channels, 1),
        )
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers, once more in backward where they are checkpointed."""
        return checkpoint(super().forward, x, use_reentrant=False) if self.checkpointed else super().forward(x)


def cases(ranks: int) -> list[Case]:
    """What is compared on so many ranks."""
    uneven = {2: (1, 10), 4: (1, 5, 2, 3)}[ranks]
    found = [
        Case("non_local", {}, (0, 6, 11, 3, 4), "ring", differs_alone=False),
        Case("non_local", window(2) | {"norm": None}, (2, 6, 4 * ranks, 3, 3), differs_alone=False),
        Case("non_local", pooled(2) | {"norm": "layer"}, rows=uneven),
        Case("non_local", pooled((5, 2, 3)), rows=uneven),
        Case("non_local", pooled(40) | {"norm": "layer"}),
        Case(attn3d.PositionAttention, {"reduction": 2}, sharing="ring"),
        Case(attn3d.PositionAttention, {"reduction": 2} | neighborhood(3)),
        Case("mhsa", {"num_heads": 2, "memory_budget": "64KiB"}, sharing="ring", rows=uneven),
        Case("mhsa", {"num_heads": 2, "method": "reference"}),
        Case("mhsa", {"num_heads": 3, "method": "fused"}, rows=uneven),
        Case(Network, {}, sharing="ring"),
        Case(Network, {"checkpointed": True}, sharing="ring", rows=uneven),
    ]
    for sharing in ("ring", "all_gather"):
        found += [
            Case("non_local", {}, sharing=sharing, rows=uneven),
            Case("non_local", {"variant": "paper"}, sharing=sharing, training=False),
            Case("non_local", {"mode": "gaussian", "norm": None}, (2, 5, 13, 4), sharing),
            Case("non_local", {}, (2, 4, 19), sharing),
            Case("non_local", {}, (2, 4, ranks, 1, 1), sharing),
        ]
    for method in ("auto", "fused", "reference"):
        options = {"num_heads": 2, "method": method}
        for bias in ("axis", "joint") if method != "fused" else ("axis",):
            found.append(Case("mhsa", options | {"position_bias": bias} | window((3, 2, 2), True), rows=uneven))
        found.append(
            Case("mhsa", options | {"position_bias": "axis"} | neighborhood((5, 3, 1), (2, 1, 1)), rows=uneven)
        )
    found += [Case("non_local", window(size, True), rows=uneven) for size in (1, 4, 30)]
    found += [Case("non_local", window(size)) for size in (2, 5)]
    found += [Case("non_local", neighborhood(*sizes)) for sizes in ((3,), (31,), (3, 2), (7, 5))]
    return found


def run(module: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the input for the loss sum(weight * output)."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * weight).sum().backward()
    return y.detach(), x.grad


def shards(case: Case, x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's shard of a volume."""
    parts = x.tensor_split(group.size(), 2) if case.rows is None else x.split(case.rows, 2)
    return parts[group.rank()]


def compare(case: Case, group: dist.ProcessGroup, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """The errors of this rank's shard against the whole volume in float64, by what is compared.

    Parameters are random in float64; in another precision they are those of a new module, with which logits are
    small and rounding is not multiplied.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(case.shape, generator=generator).double() * scale for scale in (1.0, 0.1))
    mechanism, options = case.mechanism, case.options
    torch.manual_seed(0)
    module = attn3d.create_attention(mechanism, spatial_dims=len(case.shape) - 2, channels=case.shape[1], **options)
    module = (randomise(module) if dtype == torch.float64 else module).double().train(case.training)
    whole, alone = copy.deepcopy(module), copy.deepcopy(module)
    y, grad = run(whole, x, weight)
    wanted = {"output": shards(case, y, group), "input": shards(case, grad, group)} | kept(whole)

    shard_over(module.to(dtype), group, sharing=case.sharing)
    part_x, part_weight = shards(case, x, group), shards(case, weight, group)
    y, grad = run(module, part_x.to(dtype), part_weight.to(dtype))
    sum_gradients(module, group)
    got = {"output": y, "input": grad} | kept(module)
    errors = {name: error(got[name], wanted[name]) for name in wanted}
    y, _ = run(alone, part_x, part_weight)
    errors["alone"] = error(y, wanted["output"]) if case.differs_alone else 1.0
    return errors


def kept(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of parameters, and the buffers: running statistics and numbers of batches."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return gradients | {name: buffer.to(torch.float64) for name, buffer in module.named_buffers()}


def error(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    if one.shape != other.shape or one.isnan().any():
        return float("inf")
    return ((one - other).abs().max() / (1 + other.abs().max())).item() if one.numel() else 0.0


def data_and_volume() -> dict[str, float]:
    """Two batches over two ranks each, with DDP over the batches."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "volume"))
    data, volume = mesh["data"].get_group(), mesh["volume"].get_group()
    x, weight = (torch.randn(4, 6, 7, 3, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    module = randomise(attn3d.NonLocal(3, 6).double())
    wholes = [copy.deepcopy(module) for _ in range(2)]
    for index, whole in enumerate(wholes):
        run(whole, *(both.chunk(2)[index] for both in (x, weight)))
    replica = DistributedDataParallel(shard_over(module, volume, sharing="ring"), process_group=data)
    run(replica, *(both.chunk(2)[data.rank()].tensor_split(2, 2)[volume.rank()] for both in (x, weight)))
    sum_gradients(module, volume)
    return {
        name: error(one.grad, (first.grad + second.grad) / 2)
        for (name, one), first, second in zip(
            module.named_parameters(), wholes[0].parameters(), wholes[1].parameters(), strict=True
        )
    }


def message_of_unlike_shards(group: dist.ProcessGroup) -> str:
    """What a rank hears when the shards do not make a volume."""
    module = shard_over(attn3d.NonLocal(3, 4), group)
    try:
        module(torch.randn(1, 4, 2, 3 + group.rank(), 5))
    except ValueError as error:
        return str(error)
    return "nothing"


def work(rank: int, ranks: int, folder: str) -> None:
    """Everything that one of ``ranks`` processes does."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=PATIENCE / 2)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout, ranks, rank)
    group = dist.group.WORLD
    results = {str(case): compare(case, group) for case in cases(ranks)}
    for sharing in ("ring", "all_gather"):
        case = Case("non_local", {"norm": None}, (2, 8, 12, 6, 5), sharing)
        results["single precision", str(case)] = compare(case, group, torch.float32)
    if ranks == 4:
        results["data and volume"] = data_and_volume()
    torch.save((results, message_of_unlike_shards(group)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
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
    *[(name, {}, "by other means than softmax") for name in ("se", "eca", "cbam", "bam", "coord", "sk", "gc", "danet")],
    ("non_local", {"mode": "dot_product"}, "mode 'dot_product' is no softmax"),
    ("non_local", {"mode": "concatenation"}, "mode 'concatenation' is no softmax"),
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
    shard_over(nn.Sequential(nn.Conv3d(8, 8, (1, 3, 3)), nn.ReLU(), attn3d.NonLocal(3, 8)), group)
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
