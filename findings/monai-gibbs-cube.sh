#!/usr/bin/env bash
# MONAI: Gibbs noise of strength 0, documented as the identity, changes a volume whose axes have similar lengths.
#
# monai 1.6.1, torch 2.13.0. GibbsNoise(alpha) keeps the frequencies inside of a sphere. Its documentation says that
# alpha = 0 is the identity. The radius of the sphere is that of the corners of a square, half its diagonal, so slices
# and flat volumes are unchanged. The corners of a cube are further away: 4 % of its frequencies are removed, and a
# volume of white noise changes by up to a fifth of its range. RandGibbsNoise, whose strengths begin at 0, therefore
# changes every cubic patch that it is applied to, also by its weakest strength. No thread about it was found.
#
# Seen (largest change of uniform noise from 0 to 1; fraction of the energy of a centred impulse that is kept):
#   slice of 24 x 24            0.00  1.000
#   volume of 48 x 48 x 8       0.00  1.000
#   volume of 24 x 24 x 24      0.19  0.961
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.transforms import GibbsNoise

torch.manual_seed(0)
for shape in ((24, 24), (48, 48, 8), (24, 24, 24)):
    noise, impulse = torch.rand(1, *shape), torch.zeros(1, *shape)
    impulse[(0, *(size // 2 for size in shape))] = 1
    change = (GibbsNoise(alpha=0.0)(noise) - noise).abs().max().item()
    kept = GibbsNoise(alpha=0.0)(impulse).square().sum().item()
    print(" x ".join(map(str, shape)), f"{change:.2f} {kept:.3f}")
    is_cube = shape == (24, 24, 24)
    assert (change > 0.1 and kept < 0.97) if is_cube else (change < 1e-4 and kept > 0.999), "the behaviour has changed"
END
