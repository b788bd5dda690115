#!/usr/bin/env bash
# torch-interpol: resized labels are all background, unless prefilter=False is given.
#
# torch-interpol 0.3.0, torch 2.13.0. The package resamples volumes, and takes integers for labels: "unique labels are
# extracted and resampled individually", and each voxel gets the label with the largest value. One expects the labels in
# another size. But with prefilter=True, which is the default of resize and changes nothing for linear interpolation of
# intensities, the volume of labels is overwritten by the mask of the first label while the loop over the labels goes
# on, so that the others are not found any more. It is the same for grid_pull with prefilter=True, for nearest, linear
# and cubic interpolation and for all types of integers. There is no warning: lesions disappear. jitfields, an optional
# package that torch-interpol can use instead, was not tried. No thread about it was found.
#
# Seen (voxels of labels 0, 2 and 5; linear interpolation):
#   factor  scipy, nearest    prefilter=False   default
#   1        792   72   96     792   72   96     960  0  0
#   2       6336  576  768    6348  572  760    7680  0  0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torch-interpol==0.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import interpol
import numpy as np
import torch
from scipy import ndimage


def count(labels):
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


print("torch-interpol", version("torch-interpol"), "torch", torch.__version__)
labels = torch.zeros(1, 1, 12, 10, 8, dtype=torch.long)
labels[0, 0, 0:3, 2:8, 2:6], labels[0, 0, 5:9, 2:8, 2:6] = 2, 5
grid = interpol.identity_grid(labels.shape[2:])[None]
expected = {1: {0: 792, 2: 72, 5: 96}, 2: {0: 6348, 2: 572, 5: 760}}
for factor, counts in expected.items():
    plain = ndimage.zoom(labels[0, 0].numpy(), factor, order=0, grid_mode=True, mode="nearest")
    assert count(plain) == {0: 792 * factor**3, 2: 72 * factor**3, 5: 96 * factor**3}
    options = {"factor": [factor] * 3, "anchor": "edges", "interpolation": 1}
    without = interpol.resize(labels, prefilter=False, **options)
    default = interpol.resize(labels, **options)
    print("factor", factor, "scipy", count(plain), "without", count(without), "default", count(default))
    assert count(without) == counts and count(default) == {0: plain.size}, "the behaviour has changed"
    intensities = [interpol.resize(labels.float(), prefilter=value, **options) for value in (True, False)]
    assert torch.equal(*intensities)
for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
    for order in (0, 1, 3):
        pulled = interpol.grid_pull(labels.to(dtype), grid, interpolation=order, prefilter=True)
        assert count(pulled) == {0: labels.numel()}, "the behaviour has changed"
    assert torch.equal(interpol.grid_pull(labels.to(dtype), grid, interpolation=0), labels.to(dtype))
END
