#!/usr/bin/env bash
# GaussianSmooth: the first slice of a uniform scan loses a third of its intensity.
#
# monai 1.6.1, torch 2.13.0, scipy 1.17.1. One expects that smoothing does not change a uniform volume, as with scipy's
# gaussian_filter by default. MONAI's filter takes zeros outside of the volume. The documentation of the transforms does
# not mention it, and there is no option. In a head CT, 0 is water: air of -1000 HU becomes -331 HU in the corners. With
# few thick slices, the first and last slice are much of the scan. GaussianSharpen(), which adds 30 times the difference
# of two smoothed volumes, changes every voxel. Resize with anti_aliasing=True smooths in the same way.
#
# Seen (12 slices of 20 x 20 voxels of 40 HU; first slice, middle of the volume, corner):
#   scipy, default mode            40     40  40
#   scipy, zeros outside           28.0   40  13.7
#   GaussianSmooth                 27.7   40  13.2
#   GaussianSmooth of air (-1000)  -691  -1000  -331
#   GaussianSharpen                177    56  124
#   Resize to 6 x 10 x 10          40     40  40
#   the same with anti-aliasing    36.8   40  31.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
from monai.transforms import GaussianSharpen, GaussianSmooth, Resize
from scipy.ndimage import gaussian_filter

scan = torch.full((1, 12, 20, 20), 40.0)


def seen(name, result):
    depth, height, width = result.shape[1:]
    middle = height // 2, width // 2
    values = result[0][0][middle], result[0][depth // 2][middle], result[0][0][0, 0]
    print(name, *(f"{value:.1f}" for value in values))
    return np.array([float(value) for value in values])


default = seen("scipy", gaussian_filter(scan.numpy(), (0, 1, 1, 1)))
zeros = seen("scipy, zeros outside", gaussian_filter(scan.numpy(), (0, 1, 1, 1), mode="constant"))
smooth = seen("GaussianSmooth", GaussianSmooth(1.0)(scan))
air = seen("GaussianSmooth of air", GaussianSmooth(1.0)(torch.full_like(scan, -1000)))
sharp = seen("GaussianSharpen", GaussianSharpen()(scan))
plain = seen("Resize", Resize((6, 10, 10), mode="trilinear")(scan))
resized = seen("Resize, anti-aliased", Resize((6, 10, 10), mode="trilinear", anti_aliasing=True)(scan))
assert np.allclose(default, 40, atol=0.01) and np.allclose(plain, 40, atol=0.01)
assert np.allclose(smooth, (27.66, 40, 13.22), atol=0.01), "the behaviour has changed"
assert np.allclose(smooth, zeros, atol=0.5) and np.allclose(air, -25 * smooth, atol=0.1), "the behaviour has changed"
assert np.allclose(sharp, (177.4, 56.0, 124.4), atol=0.1), "the behaviour has changed"
assert np.allclose(resized, (36.8, 40, 31.15), atol=0.1), "the behaviour has changed"
END
