#!/usr/bin/env bash
# OcclusionSensitivity: for a scan with several channels and a network with one logit, the map is 1 everywhere.
#
# monai 1.6.1, torch 2.13.0. The map shows the probability of a network when a part of the scan is covered. One
# expects the sigmoid for one logit and the softmax for several classes: "if True, do softmax activation if
# num_channels > 1 else do sigmoid". But the channels of the input are counted instead of those of the output. With
# four sequences of an MR and one logit, the softmax of a single number is 1: no part of the scan seems to matter.
# With a CT and three classes, each logit gets a sigmoid: the probabilities add up to 2.4. Only one channel with one
# logit and several channels with several classes are right. There is no warning. activate=False or a function is
# right. No issue about it was found.
#
# Seen (a network that looks at the middle of the scan alone; smallest and largest value of the map of the last class):
#   channels, logits  map          expected
#   1, 1              0.12 - 0.88  0.12 - 0.88
#   4, 1              1 - 1        0.12 - 0.88
#   1, 3              0.02 - 0.98  0.02 - 0.87 (softmax)
#   4, 3              0.02 - 0.87  0.02 - 0.87
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.visualize import OcclusionSensitivity


class Middle(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.factors = torch.tensor((1.0,) if logits == 1 else (0.0, 1.0, 2.0))

    def forward(self, x):
        return (4 * x[:, :1, 4:8, 4:8, 4:8].mean((2, 3, 4)) - 2) * self.factors


def seen(channels, logits, activate=True):
    scan = torch.ones(1, channels, 12, 12, 12)
    occlusion = OcclusionSensitivity(
        Middle(logits), mask_size=4, overlap=0.0, mode=0.0, activate=activate, verbose=False
    )
    return occlusion(scan)[0][0]


def expected(channels, logits):
    """A loop over the 27 boxes."""
    network, result = Middle(logits), torch.empty(logits, 12, 12, 12)
    for corner in torch.cartesian_prod(*[torch.arange(0, 12, 4)] * 3).tolist():
        box = (..., *(slice(start, start + 4) for start in corner))
        scan = torch.ones(1, channels, 12, 12, 12)
        scan[box] = 0
        logit = network(scan)[0]
        result[box] = (logit.sigmoid() if logits == 1 else logit.softmax(0))[:, None, None, None]
    return result


for channels, logits, right in ((1, 1, True), (4, 1, False), (1, 3, False), (4, 3, True)):
    a, b = seen(channels, logits), expected(channels, logits)
    numbers = a[-1].min(), a[-1].max(), b[-1].min(), b[-1].max(), a.sum(0).max()
    print(channels, logits, "map {:.2f} - {:.2f}, expected {:.2f} - {:.2f}, sum {:.2f}".format(*numbers))
    assert torch.allclose(a, b, atol=1e-5) == right, "the behaviour has changed"
    assert torch.allclose(seen(channels, logits, lambda x: x.sigmoid() if logits == 1 else x.softmax(1)), b, atol=1e-5)
assert (seen(4, 1) == 1).all(), "the behaviour has changed"
END
