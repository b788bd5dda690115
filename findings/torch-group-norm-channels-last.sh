#!/usr/bin/env bash
# PyTorch: a group norm of the same values loses all digits if they are stored with the channels last.
#
# torch 2.13.0, CPU, float32, GroupNorm, 3-D. The values have a mean that is 100 or 1000 times their standard deviation,
# such as features with a large bias, or a scan with a narrow range far from 0. Stored contiguously, the
# variance is computed relative to the mean. With channels_last_3d, it is mean(x^2) - mean(x)^2 in float32, which is 0 or
# noise. The output is not normalised, and there is no warning.
#
# Seen (mean over standard deviation, memory format, standard deviation of the output, which should be 1, error):
#   100 contiguous 1, relative error 4e-06
#   100 channels last 1.001, relative error 6e-03
#   1000 contiguous 1, relative error 3e-05
#   1000 channels last 113.9, relative error 1e+02
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from torch.nn.functional import group_norm

torch.manual_seed(0)
noise = torch.randn(2, 4, 8, 16, 16)
for mean in (100, 1000):
    x = mean + noise
    exact = group_norm(x.double(), 4)
    errors = {}
    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last_3d)):
        y = group_norm(x.contiguous(memory_format=memory_format), 4)
        errors[name] = ((y - exact).norm() / exact.norm()).item()
        print(mean, name, f"{y.std().item():.4g}, relative error {errors[name]:.0e}")
    assert errors["contiguous"] < 1e-4, "the behaviour has changed"
    assert errors["channels last"] > {100: 1e-3, 1000: 10}[mean], "the behaviour has changed"
END
