#!/usr/bin/env bash
# MONAI: a grid distortion without any distortion repeats a slice at every cell border and stretches the cells.
#
# monai 1.6.1, torch 2.13.0. The steps of GridDistortion say how much each cell is stretched, so with steps of 1 one
# expects the identity. The positions in a cell are spaced from its first border to its last one, both included, so the
# slice at each border is there twice, and a cell of 4 slices is stretched by 4/3 between two such repeats. Lesions
# become larger, and positions are off by up to a voxel, with every RandGridDistortion, however small its limits are.
# Image and label are distorted alike. No thread about it was found.
#
# Seen (the position of each of 24 slices, with steps of 1):
#   2 cells   0 1.09 2.18 .. 10.91 12 12 13.09 .. 23
#   6 cells   0 1.33 2.67 4 4 5.33 6.67 8 8 9.33 .. 21.33 22.67 23
#   largest distance to the true position: 1 voxel
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.transforms import GridDistortion

slices = torch.arange(24.0).view(1, 24, 1, 1).expand(1, 24, 24, 24).clone()  # each voxel has the number of its slice
for cells in (2, 6):
    distortion = GridDistortion(num_cells=cells, distort_steps=[[1.0] * (cells + 1)] * 3)
    found = distortion(slices)[0, :, 12, 12]
    off = (found - slices[0, :, 12, 12]).abs().max().item()
    print(cells, "cells:", [round(one, 2) for one in found.tolist()], f"largest distance {off:.2f}")
    repeats = (found.diff().abs() < 1e-3).sum().item()
    assert repeats == cells - 1 and off > 0.5, "the behaviour has changed"
END
