#!/usr/bin/env bash
# grad-cam: the heat map of a 3-D network is up to 4.5 voxels from the lesion; that of the same 2-D network is right.
#
# grad-cam 1.5.7, torch 2.13.0, scipy 1.17.1. GradCAM enlarges the map of a layer to the size of the input, so one
# expects each feature above the voxels that it was computed from. Maps of slices are enlarged by OpenCV, which does
# that. Maps of volumes are enlarged by scipy.ndimage.zoom, which puts the centre of the first feature on the first
# voxel and that of the last one on the last voxel: the map is stretched towards the ends, by half of the stride less
# half a voxel there (15 mm for a stride of 16 and slices of 2 mm). Other methods of the package use the same function.
# Neither the readme nor a thread about 3-D networks that was found mentions it.
#
# Seen (a stride of 16, 8 features along the first axis; the voxels with at least half of the sum over the other axes):
#   middle of the lesion  2-D   3-D   3-D by torch's trilinear interpolation
#    7.5                   7.5   5.0   7.5
#   23.5                  23.5  19.0  23.5
#   39.5                  39.5  36.0  39.5
#   55.5                  55.5  54.0  55.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 matplotlib==3.11.2 \
    opencv-python-headless==5.0.0.93 ttach==0.0.3 tqdm==4.67.1 pillow==13.0.0
"$folder/venv/bin/pip" install -q --no-deps grad-cam==1.5.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version
from unittest.mock import MagicMock

for name in "torchvision", "torchvision.transforms", "torchvision.transforms.functional":
    sys.modules[name] = MagicMock()  # imported but not used here, and its wheel does not fit every build of torch

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from torch import nn

stride, cells = 16, 8


class Network(nn.Module):
    """One feature per cell, the mean of the scan in it, and the sum of all features as the only logit."""

    def __init__(self, pool):
        super().__init__()
        self.features, self.weight = pool(stride), nn.Parameter(torch.ones(1))

    def forward(self, scan):
        return self.weight * self.features(scan).flatten(1).sum(1, keepdim=True)


def middle(heat):
    """Return the middle, along the first axis, of where the sum over the other axes is at least half of its maximum."""
    profile = heat.reshape(len(heat), -1).sum(1)
    return np.flatnonzero(profile >= profile.max() / 2).mean()


print("grad-cam", version("grad-cam"), "torch", torch.__version__)
for cell, expected in enumerate((5.0, 19.0, 36.0, 54.0)):
    seen = {}
    for pool, axes, mode in ((nn.AvgPool2d, 2, "bilinear"), (nn.AvgPool3d, 3, "trilinear")):
        scan = torch.zeros(1, 1, stride * cells, *[3 * stride] * (axes - 1))
        inner = [slice(stride, 2 * stride)] * (axes - 1)
        scan[(0, 0, slice(cell * stride, (cell + 1) * stride), *inner)] = 1
        lesion, network = middle(scan.numpy()[0, 0]), Network(pool)
        with GradCAM(network, [network.features]) as gradcam:
            seen[axes] = middle(gradcam(scan.clone().requires_grad_(), None)[0])
        plain = torch.nn.functional.interpolate(network.features(scan), scan.shape[2:], mode=mode)
        assert middle(plain.numpy()[0, 0]) == lesion == stride * cell + 7.5
    print("lesion", lesion, "2-D", seen[2], "3-D", seen[3])
    assert seen == {2: lesion, 3: expected}, "the behaviour has changed"
END
