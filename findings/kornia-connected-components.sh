#!/usr/bin/env bash
# kornia splits one disc into thousands of components.
#
# kornia 0.9.0, torch 2.13.0. contrib.connected_components spreads the largest number by one voxel per iteration. It stops
# after 100 iterations by default and returns the current numbers without a warning, so the count of components is wrong.
# The brain in a CT slice of 512 x 512 has a radius of about 150 pixels. Here 500 iterations are enough; a winding vessel
# needs as many iterations as its path has voxels.
#
# Seen (components of one disc in 512 x 512, with 100 and with 500 iterations):
#   radius 40   1      1
#   radius 60   19     1
#   radius 150  29859  1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 kornia==0.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from kornia.contrib import connected_components

y, x = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
for radius, right in ((40, True), (60, False), (150, False)):
    disc = ((y - 256) ** 2 + (x - 256) ** 2 < radius**2).float()[None, None]
    count, enough = (connected_components(disc, n).unique().numel() - 1 for n in (100, 500))
    print("radius", radius, count, enough)
    assert (count == 1) == right and enough == 1, "the behaviour has changed"
END
