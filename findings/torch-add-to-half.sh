#!/usr/bin/env bash
# PyTorch: adding float32 to a float16 tensor in place allocates twice the memory of what is added.
#
# torch 2.13.0, CPU. Sliding-window inference sums the logits of windows in half precision to save memory. One expects
# `sums += logits` to allocate nothing. With logits in float32, PyTorch copies the float16 operand to float32, and adds into
# another temporary copy. Rounding the logits to float16 first takes a quarter of this memory.
#
# Seen (largest temporary memory, as a multiple of the bytes of the float32 logits):
#   sums += logits         2.0
#   sums += logits.half()  0.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from torch.profiler import ProfilerActivity, profile

sums, logits = torch.zeros(16, 96, 96, 96, dtype=torch.float16), torch.randn(16, 64, 64, 64)
part = sums[:, :64, :64, :64]


def mixed():
    part.add_(logits)


def rounded():
    part.add_(logits.half())


def temporary(add):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        add()
    used = largest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            largest = max(largest, used)
    return round(largest / logits.nbytes, 2)


found = {"sums += logits": temporary(mixed), "sums += logits.half()": temporary(rounded)}
for what, memory in found.items():
    print(what, memory)
assert list(found.values()) == [2.0, 0.5], "the behaviour has changed"
END
