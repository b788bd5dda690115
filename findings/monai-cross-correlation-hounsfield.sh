#!/usr/bin/env bash
# MONAI: for CTs in Hounsfield units, the local cross-correlation is thousands instead of at most 1, due to the air.
#
# monai 1.6.1, torch 2.13.0. LocalNormalizedCrossCorrelationLoss is a loss for registration, documented to be between
# about -1 and 0. A correlation does not depend on the unit of the scans. But each variance is computed as a mean of
# squares minus the square of a mean, in float32, and is at least 1e-5 (smooth_dr). In air of -1000 HU, the squares of a
# window have a rounding error of about 1, so that the loss of these windows is a rounding error divided by 1e-5 or
# 1e-10. Where one scan is exactly uniform, as outside of the field of view, and the other one has some noise, the loss
# is far below -1, and its gradient is that of rounding errors: a registration improves the air, not the body. In
# float64, or with intensities from 0 to 1, all is right. (These two differ, since windows at the border are padded with
# 0.) The documentation does not say in which units scans are to be. The issue that introduced the minimum, MONAI#1868,
# is about an infinite loss; none about units was found.
#
# Seen (body of 12 x 12 x 12 voxels with a deviation of 30 HU in air of -1000 HU, against the same scan with a noise of
# 1 HU; window of 3 x 3 x 3):
#   intensities      loss   share of the gradient in the body
#   HU, float32      -7318    0.00 %
#   HU, float64      -0.43  100 %
#   0 to 1, float32  -0.20  100 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss

generator = torch.Generator().manual_seed(0)
fixed = torch.full((1, 1, 24, 24, 24), -1000.0)
body = (..., slice(6, 18), slice(6, 18), slice(6, 18))
fixed[body] = 40 + 30 * torch.randn(12, 12, 12, generator=generator)
moving = fixed + torch.randn(fixed.shape, generator=generator)
criterion = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=3)


def loss_of(fixed, moving):
    moving = moving.clone().requires_grad_()
    loss = criterion(moving, fixed)
    (gradient,) = torch.autograd.grad(loss, moving)
    return loss.item(), (gradient[body].norm() / gradient.norm()).item()


def plain():
    """The mean of the squared correlation of all windows in float64, from deviations; 0 where a scan is uniform."""
    one, other = (np.pad(x[0, 0].double().numpy(), 1) for x in (fixed, moving))
    one, other = (np.lib.stride_tricks.sliding_window_view(x, (3, 3, 3)).reshape(24**3, 27) for x in (one, other))
    one, other = (x - x.mean(1, keepdims=True) for x in (one, other))
    variance = np.maximum((one**2).sum(1), 1e-5) * np.maximum((other**2).sum(1), 1e-5)
    return -np.mean((one * other).sum(1) ** 2 / variance)


hounsfield = loss_of(fixed, moving)
double = loss_of(fixed.double(), moving.double())
scaled = loss_of((fixed + 1000) / 2000, (moving + 1000) / 2000)
print("loss and share of the body in the gradient: HU", hounsfield, "float64", double, "0 to 1", scaled)
print("plain loss in HU", plain())
assert abs(double[0] - plain()) < 1e-3
assert -0.3 < scaled[0] < -0.1 and scaled[1] > 0.9
assert hounsfield[0] < -100 and hounsfield[1] < 0.01, "the behaviour has changed"
END
