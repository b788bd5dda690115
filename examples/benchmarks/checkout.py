"""Measures attention in groups with a checkout of the library, in a separate process.

Two checkouts cannot be imported into one process. Therefore each checkout has its own process. It reads a case from a
line of JSON, runs it, and writes its seconds or its peak memory in bytes as a line of JSON.
"""

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from torch import Tensor, nn

from examples.benchmarks.measuring import Bench, inference, training

ROOT = Path(__file__).parents[2]
HEADS, WIDTH = 4, 32
PAUSE = 0.01  # seconds until the threads of a process are idle


class Case(NamedTuple):
    """A case to measure: heads of 32 channels over the voxels of a cube."""

    pattern: str
    options: dict[str, Any]
    extent: int
    dtype: str
    training: bool
    threads: int

    def step(self, volume_attention: type[nn.Module], device: str) -> Callable[[], Any]:
        """A forward pass, and in training also a backward pass, with the ``VolumeAttention`` of a checkout.

        q, k and v have the memory layout of multi-head self-attention in that checkout. In version 0.1, which has the
        option ``scope``, its first layer is a convolution, so channels come first. The output always has channels last.
        """
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        channels_first = "scope" in inspect.signature(volume_attention).parameters
        layer = volume_attention(3, HEADS, **{"scope" if channels_first else "pattern": (self.pattern, self.options)})
        shape, channels = [self.extent] * 3, 3 * HEADS * WIDTH
        options = {"device": device, "dtype": getattr(torch, self.dtype)}
        if channels_first:
            parts = torch.randn(1, channels, self.extent**3, **options).chunk(3, 1)
            tokens = [part.unflatten(1, (HEADS, WIDTH)).transpose(2, 3) for part in parts]
        else:
            parts = torch.randn(1, self.extent**3, channels, **options).chunk(3, 2)
            tokens = [part.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for part in parts]

        def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return layer(q, k, v, shape).transpose(1, 2)

        inputs = [x.requires_grad_(self.training) for x in tokens]
        return (training if self.training else inference)(attended, *inputs)


@contextmanager
def checkout(root: Path, device: str) -> Iterator[Callable[[str, Case], float]]:
    """Starts a process with a checkout. Yields a function that measures "seconds" or "peak" of a case in it."""
    command = [sys.executable, "-m", __name__, str(root.resolve()), device]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:

        def ask(measure: str, case: Case) -> float:
            answer = ""
            try:
                print(json.dumps([measure, case]), file=process.stdin, flush=True)
                answer = process.stdout.readline()
            except BrokenPipeError:  # the process ended before the question
                with suppress(BrokenPipeError):  # what was not sent is flushed once more
                    process.stdin.close()
            if not answer:
                message = f"the library in {root} cannot run {case}; its process ended with the error above"
                raise typer.BadParameter(message, param_hint="--beside")
            return json.loads(answer)

        yield ask


def answer(root: str, device: str) -> None:
    """Measures the cases on standard input with the library in ``root``."""
    sys.path.insert(0, root)
    from attn3d.attention import VolumeAttention

    bench = Bench(device, 1, False)
    known = step = None
    for line in sys.stdin:
        measure, case = json.loads(line)
        if case != known:
            known, step = case, Case(*case).step(VolumeAttention, device)
        time.sleep(PAUSE)  # the threads of the process that asks
        found = getattr(bench, measure)(step)
        time.sleep(PAUSE)  # the threads of this process
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    answer(*sys.argv[1:])
