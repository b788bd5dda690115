#!/usr/bin/env bash
# PyTorch: a Conv3d of one volume takes 28 or 2 times the memory of its input, depending on which axis is the last one.
#
# torch 2.13.0, CPU, float32, 3 x 3 x 3, no groups. With a batch size of 1, and up to 20,480 elements in channels x depth
# x height, PyTorch does not use oneDNN but unfolds the input, which takes 27 maps. The width is not counted, so the
# volume may be of any size. The deep levels of most 3-D U-Nets are that small. With a batch size of 2, or with the long
# axis first, the same convolution takes 2 maps.
#
# Seen (shape of the input, peak memory of forward in multiples of its size):
#   (1, 64, 16, 16, 64) 28.0
#   (2, 64, 16, 16, 64) 2.1
#   (1, 64, 64, 16, 16) 2.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def peak(function):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    live = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


convolution = nn.Conv3d(64, 64, 3, padding=1)
for shape, expected in (((1, 64, 16, 16, 64), 28), ((2, 64, 16, 16, 64), 2), ((1, 64, 64, 16, 16), 2)):
    x = torch.randn(shape)
    with torch.no_grad():
        convolution(x)
        maps = peak(lambda: convolution(x)) / x.nbytes
    print(shape, round(maps, 1))
    assert round(maps) == expected, "the behaviour has changed"
END
