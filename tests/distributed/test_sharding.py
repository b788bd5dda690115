"""Networks with attention whose parameters FSDP2 shards over ranks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import attn3d
from tests.configurations import create, randomise
from tests.distributed.gloo import in_group
from tests.mechanisms.cases import CASES

RANKS = 2
SHARDED = [("danet", False), ("danet", True), ("se", True), ("triplet", True)]


def network(name: str, identity: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1)).double()
    net = randomise(attn3d.insert_attention(net, name, at="path:1", identity=identity).double())
    return net.eval()  # batch statistics of half a batch are different


def volumes() -> Tensor:
    return torch.randn(RANKS, 1, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def work(rank: int, folder: str) -> None:
    errors = in_group(errors_of_all, rank, init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.save(errors, f"{folder}/{rank}.pt")


def errors_of_all(rank: int) -> dict[tuple[str, bool], float]:
    """Shards every network and compares its gradients with those of the unsharded network."""
    mesh = init_device_mesh("cpu", (RANKS,))
    errors = {}
    for name, identity in SHARDED:
        expected = gradients(network(name, identity), volumes())
        net = network(name, identity)
        for module in net.children():
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)
        fully_shard(net, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in net.parameters())
        found = gradients(net, volumes()[rank : rank + 1])
        largest = max(float(one.abs().max()) for one in expected.values())
        errors[name, identity] = max(
            float((RANKS * found[key].full_tensor() - one).abs().max()) / largest for key, one in expected.items()
        )
    return errors


def test_gradients_are_those_of_the_whole(tmp_path: Path) -> None:
    """Each rank has half of the batch and half of every parameter."""
    mp.spawn(work, (str(tmp_path),), RANKS)
    for rank in range(RANKS):
        errors = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert list(errors) == SHARDED
        assert max(errors.values()) < 1e-9, errors


def test_every_parameter_has_a_dimension() -> None:
    """FSDP2 does not shard scalars."""
    for name, case in CASES.items():
        for options in case.forms.values():
            net = create(name, spatial_dims=3, channels=8, **options)
            assert all(parameter.dim() > 0 for parameter in net.parameters()), name
        for at in ("path:0", "path:1"):
            if case.alone is None:
                net = nn.Sequential(nn.Conv3d(1, 8, 1), nn.ReLU(), nn.Conv3d(8, 1, 1))
                attn3d.insert_attention(net, name, at=at, identity=True)
                assert all(parameter.dim() > 0 for parameter in net.parameters()), name
