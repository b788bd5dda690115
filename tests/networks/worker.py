"""One of two processes that load networks with attention, which another process has saved."""

import pathlib
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from attn3d.insertion import attention_parameters, insertions, remove_attention
from attn3d.insertion.attach import containers


def main(folder: pathlib.Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    saved = torch.load(folder / "networks.pt", weights_only=False)
    for name, (net, x, expected) in saved.items():
        torch.testing.assert_close(net(x), expected)

        seen = []  # a hook that is registered now must not take the place of one that was saved
        hosts = [net.get_submodule(path.rpartition(".attn3d")[0]) for path, _ in containers(net)]
        handles = [host.register_forward_hook(lambda *call: seen.append(call)) for host in hosts]
        handles += [host.register_forward_pre_hook(lambda *call: seen.append(call)) for host in net.modules()]
        torch.testing.assert_close(net(x), expected)
        assert len(seen) > len(hosts), name
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(net(x), expected)

        parallel = DistributedDataParallel(net.train())
        optimiser = torch.optim.SGD(parallel.parameters(), lr=0.1)
        before = [parameter.clone() for parameter in attention_parameters(net)]
        for step in range(2):
            optimiser.zero_grad()
            parallel(x * (rank + 1 + step)).square().mean().backward()
            optimiser.step()
        for parameter, start in zip(attention_parameters(net), before, strict=True):
            other = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(other, parameter.detach())
            assert torch.equal(*other), "the ranks drift apart"
            assert not torch.equal(parameter, start) or parameter.grad.abs().max() < 1e-6
        assert len(insertions(net)) >= 1
        assert insertions(remove_attention(net)) == []
        net.eval()(x)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
