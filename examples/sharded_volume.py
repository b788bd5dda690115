"""Attention over a volume that is split over several processes.

Run it with

    torchrun --nproc-per-node 2 examples/sharded_volume.py [sizes of the volume, by default 32 24 24]

Every rank has some rows of a simulated volume and attends from its voxels to all voxels. The default volume is small,
so that every rank can compare its result with that of the whole volume.
"""

import copy
import os
import sys
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

import attn3d

CHANNELS = 32


def peak_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Returns the result of ``run`` and its peak memory."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return result, max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def train_step(module: torch.nn.Module, volume: Tensor) -> Tensor:
    """Returns the output of a forward pass, after a backward pass from the sum of its squares."""
    output = module(volume)
    output.square().sum().backward()
    return output.detach()


if "--help" in sys.argv:
    print(__doc__)
    sys.exit()
if "RANK" not in os.environ:  # torchrun sets it
    sys.exit(__doc__)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
shape = [int(size) for size in sys.argv[1:]] or [32, 24, 24]

torch.manual_seed(0)  # the same module and volume on every rank
volume = torch.randn(1, CHANNELS, *shape, dtype=torch.float64)  # double precision, for an exact comparison
module = attn3d.NonLocal(3, CHANNELS).double()
whole = copy.deepcopy(module)

# The rows of this rank. A real application would load only these.
parts = volume.tensor_split(ranks, 2)
first = sum(part.shape[2] for part in parts[:rank])
last = first + parts[rank].shape[2]

attn3d.parallelize_attention(module, dist.group.WORLD)
shard_output, shard_peak = peak_bytes(lambda: train_step(module, parts[rank]))
attn3d.sum_gradients(module, dist.group.WORLD)

whole_output, whole_peak = peak_bytes(lambda: train_step(whole, volume))
output_error = (shard_output - whole_output[:, :, first:last]).abs().max()
gradient_error = (module.value.weight.grad - whole.value.weight.grad).norm() / whole.value.weight.grad.norm()
print(
    f"rank {rank} of {ranks}: rows {first} to {last}, at most {shard_peak / 2**20:.1f} MiB;"
    f" the whole volume takes {whole_peak / 2**20:.1f} MiB.\n"
    f"  Its output differs from the whole by {output_error:.1e}, the gradient of a weight by {gradient_error:.1e}.",
    flush=True,
)
dist.destroy_process_group()
