"""The work of the ranks in `test_parallelize.py`: compares each case on shards with the whole volume."""

from __future__ import annotations

import copy
import datetime
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import attn3d
from attn3d.attention.groups import AxisGroups
from tests.configurations import randomise
from tests.distributed.gloo import in_group

MIXED = ("rope", {"mixed": True, "spacing": (2.0, 0.5, 1.0)})
PATIENCE = 240  # seconds after which deadlocked processes are ended


class Case(NamedTuple):
    """A mechanism, the shape of the volume, and how the volume is sharded."""

    mechanism: Any
    options: dict[str, Any]
    shape: tuple[int, ...] = (2, 6, 11, 3, 4)
    rotate: str = "all_gather"
    rows: tuple[int, ...] | None = None  # of each rank; as equal as possible by default
    training: bool = True
    differs_alone: bool = True  # whether the result on a shard alone is different


def window(size: Any, shift: bool = False) -> dict[str, Any]:
    """The option of a window."""
    return {"pattern": ("window", {"size": size, "shift": shift})}


def neighborhood(size: Any, dilation: Any = 1) -> dict[str, Any]:
    """The option of a neighbourhood."""
    return {"pattern": ("neighborhood", {"size": size, "dilation": dilation})}


def pooled(stride: Any) -> dict[str, Any]:
    """The option of pooled keys."""
    return {"pattern": ("pooled_keys", {"stride": stride})}


@dataclass(frozen=True)
class EveryOtherRow(attn3d.attention.Pattern):
    """A user-defined pattern: a voxel sees the rows at an even distance."""

    name = "every_other_row"

    def along(self, axis: int, extent: Any, spatial_dims: int, arange: Any) -> AxisGroups:
        """The even rows and the odd rows; along the other axes a voxel sees only its own position."""
        if axis > 0:
            return AxisGroups(arange(extent)[:, None], arange(extent)[:, None])
        positions = arange(2)[:, None] + 2 * arange((extent + 1) // 2)
        return AxisGroups(positions, positions)


class Network(nn.Sequential):
    """Several kinds of attention between pointwise layers."""

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
        """Runs the layers; with checkpointing, backward runs them again."""
        return checkpoint(super().forward, x, use_reentrant=False) if self.checkpointed else super().forward(x)


def cases(ranks: int) -> list[Case]:
    """The cases for a number of ranks."""
    uneven = {2: (1, 10), 4: (1, 5, 2, 3)}[ranks]
    found = [
        Case("non_local", {}, (0, 6, 11, 3, 4), "ring", differs_alone=False),
        Case("non_local", window(2) | {"norm": None}, (2, 6, 4 * ranks, 3, 3), differs_alone=False),
        Case("non_local", pooled(2) | {"norm": "layer"}, rows=uneven),
        Case("non_local", pooled((5, 2, 3)), rows=uneven),
        Case("non_local", pooled(40) | {"norm": "layer"}),
        Case("non_local", pooled((5, 2, 3)), rotate="ring", rows=uneven),
        Case(attn3d.PositionAttention, {"reduction": 2}, rotate="ring"),
        Case(attn3d.PositionAttention, {"reduction": 2} | neighborhood(3)),
        Case("mhsa", {"num_heads": 2, "memory_budget": "128KiB"}, rotate="ring", rows=uneven),
        Case("mhsa", {"num_heads": 2, "backend": "math"}),
        Case("mhsa", {"num_heads": 3, "backend": "sdpa"}, rows=uneven),
        Case(Network, {}, rotate="ring"),
        Case("danet", {"reduction": 2}, rotate="ring", rows=uneven),
        Case("danet", {"reduction": 2, "channel_energy": "official", "scale": "1/N"} | window(3)),
        Case("non_local", {"mode": "dot_product"}, rows=uneven),
        Case("non_local", {"mode": "dot_product"} | pooled(2), rotate="ring"),
        Case("non_local", {"mode": "concatenation", "norm": "layer"}, rotate="ring"),
        Case("non_local", {"mode": "concatenation"} | pooled((3, 2, 2)), rows=uneven),
        Case(Network, {"checkpointed": True}, rotate="ring", rows=uneven),
        Case("channel", {"num_heads": 2}, rows=uneven),
        Case("paired", {"num_heads": 2} | pooled((5, 2, 3)), rotate="ring", rows=uneven),
        Case("mhsa", {"num_heads": 1, "position": "rope", "qk_norm": True, "registers": 2}, rows=uneven),
        Case("mhsa", {"num_heads": 2, "position": MIXED, "registers": 3} | pooled((5, 2, 3)), rows=uneven),
        Case(
            "mhsa",
            {"num_heads": 2, "position": MIXED, "scores": "cosine", "position_bias": "continuous"}
            | window((3, 2, 2), True),
            rows=uneven,
        ),
    ]
    for pattern in ({}, pooled((5, 2, 3))):
        found.append(
            Case("mhsa", {"num_heads": 2, "position": MIXED, "qk_norm": True} | pattern, (2, 6, 11, 3, 4), "ring")
        )
    for rotate in ("ring", "all_gather"):
        found += [
            Case("non_local", {}, rotate=rotate, rows=uneven),
            Case("non_local", {"variant": "paper"}, rotate=rotate, training=False),
            Case("non_local", {"mode": "gaussian", "norm": None}, (1, 5, 13, 4), rotate),
            Case("non_local", {}, (2, 4, 19), rotate),
            Case("non_local", {}, (1, 4, ranks, 1, 1), rotate),
        ]
    for backend in ("auto", "sdpa", "chunked", "math"):
        for bias in ("axis", "joint") if backend != "sdpa" else (None,):
            options = {"num_heads": 2, "backend": backend, "position_bias": bias}
            found.append(Case("mhsa", options | window((3, 2, 2), True), rows=uneven))
            if bias != "joint":
                found.append(Case("mhsa", options | neighborhood((5, 3, 1), (2, 1, 1)), rows=uneven))
    found += [Case("non_local", window(size, True), rows=uneven) for size in (1, 4, 30)]
    found += [Case("non_local", window(size)) for size in (2, 5)]
    found += [Case("non_local", neighborhood(*sizes)) for sizes in ((3,), (31,), (3, 2), (7, 5))]
    for pattern in ("axial", ("grid", {"size": (3, 2, 2)}), ("every_other_row", {})):
        found.append(Case("mhsa", {"num_heads": 2, "pattern": pattern}, rows=uneven))
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
    """The errors of this rank's shard against the whole volume in float64, by the name of the tensor.

    Parameters are random in float64. In lower precision they are those of a new module, so that logits are small and
    do not amplify rounding errors.
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

    attn3d.parallelize_attention(module.to(dtype), group, rotate=case.rotate)
    part_x, part_weight = shards(case, x, group), shards(case, weight, group)
    y, grad = run(module, part_x.to(dtype), part_weight.to(dtype))
    attn3d.sum_gradients(module, group)
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
    replica = DistributedDataParallel(attn3d.parallelize_attention(module, volume, rotate="ring"), process_group=data)
    run(replica, *(both.chunk(2)[data.rank()].tensor_split(2, 2)[volume.rank()] for both in (x, weight)))
    attn3d.sum_gradients(module, volume)
    return {
        name: error(one.grad, (first.grad + second.grad) / 2)
        for (name, one), first, second in zip(
            module.named_parameters(), wholes[0].parameters(), wholes[1].parameters(), strict=True
        )
    }


def messages(group: dist.ProcessGroup) -> list[str]:
    """The errors for shards that do not fit together, and for a budget that is too small for the largest shard."""
    rank = group.rank()
    wrong = [
        (attn3d.NonLocal(3, 4), torch.randn(1, 4, 2, 3 + rank, 5)),
        (attn3d.NonLocal(3, 4, memory_budget="8KiB"), torch.randn(1, 4, 20 if rank else 1, 4, 4)),
    ]
    found = []
    for module, x in wrong:
        try:
            attn3d.parallelize_attention(module, group, rotate="ring")(x)
            found.append("nothing")
        except ValueError as error:
            found.append(str(error))
    return found


def work(rank: int, ranks: int, folder: str) -> None:
    """The work of one of ``ranks`` processes."""
    torch.set_num_threads(1)
    options = {"init_method": f"file://{folder}/store", "timeout": datetime.timedelta(seconds=PATIENCE / 2)}
    found = in_group(everything, ranks, **options, world_size=ranks, rank=rank)
    torch.save(found, f"{folder}/{rank}.pt")


def everything(ranks: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The errors of all cases, and the messages."""
    group = dist.group.WORLD
    results = {str(case): compare(case, group) for case in cases(ranks)}
    for rotate in ("ring", "all_gather"):
        case = Case("non_local", {"norm": None}, (2, 8, 12, 6, 5), rotate)
        results["single precision", str(case)] = compare(case, group, torch.float32)
    if ranks == 4:
        results["data and volume"] = data_and_volume()
    return results, messages(group)
