"""A non-local block over a whole volume, without the N x N matrix of the plain form.

    python examples/whole_volume.py
    python examples/whole_volume.py --size 64        # 262,144 voxels, all pairs: minutes on a CPU

The attention is exact: a softmax over all voxels, computed in tiles. The memory is measured by PyTorch's profiler.
"""

import time
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

import attn3d


def main(
    size: Annotated[int, typer.Option(min=2, help="Voxels along each axis.")] = 32,
    channels: Annotated[int, typer.Option(min=2, help="Number of channels.")] = 32,
) -> None:
    """Measure forward and backward, and compare the memory with the estimate."""
    torch.manual_seed(0)
    block = attn3d.NonLocal(3, channels)
    voxels = size**3
    estimated = attn3d.estimate_memory(block, (1, channels, size, size, size))
    print(f"{voxels:,} voxels: the matrix of all pairs alone would take {voxels**2 * 4 / 2**30:,.1f} GiB")
    print(f"estimated, without the volume and the block: {estimated / 2**20:,.0f} MiB; computing ..")

    x = torch.randn(1, channels, size, size, size, requires_grad=True)
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = block(x)
        y.backward(torch.ones_like(y))
    seconds = time.perf_counter() - start
    alive = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    print(f"measured: {peak / 2**20:,.0f} MiB, forward and backward in {seconds:.1f} s")

    # The weights of one voxel, without the rest of the matrix.
    middle = voxels // 2 + size**2 // 2 + size // 2
    with torch.inference_mode():
        row = block.attention_weights(x, queries=torch.tensor([middle]))["query"]
    print(f"the voxel in the middle: {row.numel():,} weights that sum to {row.sum():.4f}, the largest {row.max():.2e}")


if __name__ == "__main__":
    typer.run(main)
