#!/usr/bin/env bash
# medcam: the attention map of a scan without a finding is 0 alone and NaN in a batch; with "ggcam", so are the others.
#
# medcam 0.1.22 (M3d-Cam), torch 2.13.0. inject() adds attention maps to a network; inputs are batches of volumes. One
# expects that the map of a scan does not depend on the other scans of its batch. But a map that is constant, as where
# a layer does not respond at all, is set to 0 only if the whole batch is: otherwise it is divided by 0, and is NaN.
# Guided Grad-CAM scales all maps of a batch by the minimum and the maximum of the first one: if the first scan has no
# response, all maps are NaN. There is no warning. With batches of one scan, all is right. No thread about it was found.
#
# Seen (sum of the map; a network that finds bright voxels, and scans with a bright and a faint lesion and with none):
#   scan                        bright  faint  none
#   alone, gcam                 115.94  53.67  0
#   bright, faint, none: gcam   115.94  53.67  NaN
#   alone, ggcam                102.82  43.43  0
#   bright, faint, none: ggcam  102.82  43.43  NaN
#   none, bright, faint: ggcam  NaN     NaN    NaN
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 matplotlib==3.11.2 nibabel==5.4.2 \
    opencv-python-headless==5.0.0.93 pandas==3.1.1 scikit-image==0.26.0
"$folder/venv/bin/pip" install -q --no-deps medcam==0.1.22
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
import torch
from medcam import medcam
from torch import nn


class Network(nn.Module):
    """Means over 3 x 3 x 3 voxels, a threshold of 0.2, and one logit for each voxel."""

    def __init__(self):
        super().__init__()
        self.mean, self.threshold, self.head = nn.Conv3d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv3d(1, 1, 1)
        for layer, weight, bias in ((self.mean, 1 / 27, -0.2), (self.head, 1, 0)):
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, scan):
        return self.head(self.threshold(self.mean(scan)))


def explain(method, names):
    batch = torch.zeros(len(names), 1, 12, 12, 12)
    for scan, name in zip(batch, names, strict=True):
        scan[..., 3:8, 3:8, 3:8] = {"bright": 5, "faint": 0.5, "none": 0}[name]
    maps = medcam.inject(Network(), backend=method, layer="threshold", replace=True)(batch)
    return dict(zip(names, maps.detach().flatten(1).sum(1).tolist(), strict=True))


print("medcam", version("medcam"), "torch", torch.__version__)
names = "bright", "faint", "none"
nan = {"gcam": {"bright": False, "faint": False, "none": True}, "ggcam": dict.fromkeys(names, True)}
for method, last in nan.items():
    alone = {name: explain(method, [name])[name] for name in names}
    usual, first = explain(method, names), explain(method, ("none", "bright", "faint"))
    print(method, "alone", alone, "in a batch", usual, "the scan without a lesion first", first)
    assert min(alone["bright"], alone["faint"]) > 40 and alone["none"] == 0
    assert np.isclose(usual["bright"], alone["bright"]) and np.isclose(usual["faint"], alone["faint"])
    assert np.isnan(usual["none"]), "the behaviour has changed"
    assert {name: np.isnan(value) for name, value in first.items()} == last, "the behaviour has changed"
END
