"""One of two processes that load networks with attention that another process has saved."""

import pathlib
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attn3d.insertion import attention_parameters, inserted_attention, remove_attention
from attn3d.networks.registry import run
from tests.distributed.gloo import in_group
from tests.networks.every_way import maps


class Run(nn.Module):
    """Runs a network on an image and returns all maps of its output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return maps(run(self.net, x))


def hook_all(net: Run, x: Tensor, expected: list[Tensor]) -> None:
    """New hooks must not replace the hooks that were saved."""
    seen = []
    handles = [module.register_forward_hook(lambda *call: seen.append(call)) for module in net.modules()]
    handles += [module.register_forward_pre_hook(lambda *call: seen.append(call)) for module in net.modules()]
    torch.testing.assert_close(net(x), expected)
    assert len(seen) > len(handles) / 4, "not all modules run, but many must"
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(net(x), expected)


def train(net: Run, x: Tensor, rank: int) -> None:
    """Trains two steps on different data per rank; then all ranks must have the same parameters."""
    parallel = DistributedDataParallel(net.train(), find_unused_parameters=True)  # some heads are unused
    optimiser = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        sum(output.square().mean() for output in parallel(x * (rank + 1 + step))).backward()
        optimiser.step()
    for parameter in attention_parameters(net):
        everywhere = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(everywhere, parameter.detach())
        assert torch.equal(*everywhere), "parameters differ between ranks"


def check_all(folder: pathlib.Path, rank: int) -> None:
    """Checks every network."""
    for saved, x, expected in torch.load(folder / "networks.pt", weights_only=False):
        net = Run(saved)
        torch.testing.assert_close(net(x), expected)
        hook_all(net, x, expected)
        train(net, x, rank)
        assert inserted_attention(saved)
        assert not inserted_attention(remove_attention(saved.eval()))
        assert not all(torch.equal(*pair) for pair in zip(net(x), expected, strict=True))


if __name__ == "__main__":
    FOLDER, RANK = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    in_group(check_all, FOLDER, RANK, init_method=f"file://{FOLDER / 'meeting'}", rank=RANK, world_size=2)
