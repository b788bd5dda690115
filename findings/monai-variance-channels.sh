#!/usr/bin/env bash
# MONAI: the more certain a network with two classes is, the more uncertain it is by VarianceMetric.
#
# monai 1.6.1, torch 2.13.0. VarianceMetric is an uncertainty for active learning: the variance of repeated predictions
# (N, C, H, W, D) of the same scan, as of Monte Carlo dropout. One expects 0 if all repeats agree. But the variance is
# over repeats and channels together (compute_variance reshapes to N * C). For softmax probabilities, the difference
# between the classes counts much more than that between the repeats: a prediction of 1 and 0 that never changes has the
# largest variance, and one of 0.5 and 0.5, or one that wavers about it, nearly none. So active learning asks for labels
# of the scans that are the easiest ones. With one channel, all is right. The docstring says "T-repeats", and a comment
# in the code that repeats are multiplied by channels. No thread about it was found.
#
# Seen (mean variance of ten repeats of two probabilities p and 1 - p; in brackets that over repeats only):
#   p in each repeat             variance
#   always 1                     0.2498 (0)
#   always 0.9                   0.1600 (0)
#   always 0.5                   0      (0)
#   0.4 and 0.6 in turns         0.0100 (0.0100)
#   0.1 and 0.9 in turns         0.1600 (0.1600)
#   0.8 and 1 in turns           0.1699 (0.0100)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
from monai.metrics import VarianceMetric

expected = {
    (1.0, 1.0): 0.2498,
    (0.9, 0.9): 0.16,
    (0.5, 0.5): 0,
    (0.4, 0.6): 0.01,
    (0.1, 0.9): 0.16,
    (0.8, 1.0): 0.1699,
}
metric = VarianceMetric(scalar_reduction="mean")
for turns, value in expected.items():
    one = torch.tensor(turns * 5).reshape(10, 1, 1, 1, 1).expand(10, 1, 6, 6, 6)
    repeats = torch.cat([one, 1 - one], dim=1)
    both, alone = metric(repeats.clone()).item(), metric(one.clone()).item()
    true = np.var(repeats.double().numpy(), axis=0).mean()
    print(turns, f"two channels {both:.4f}, one channel {alone:.4f}, over repeats only {true:.4f}")
    assert abs(alone - true) < 1e-4
    assert abs(both - value) < 1e-3, "the behaviour has changed"
END
