#!/usr/bin/env bash
# MONAI: with a triangular window of the default size, the local cross-correlation of a scan with itself is 0.
#
# monai 1.6.1, torch 2.13.0. LocalNormalizedCrossCorrelationLoss(kernel_type="triangular") correlates two scans in
# windows of kernel_size voxels, 3 by default, whose weights fall linearly; identical scans have a loss of -1. But the
# triangle has kernel_size voxels only if kernel_size is 5, 9, 13 and so on: for the others, it has two voxels less and
# zeros at its ends (make_triangular_kernel). For 3, one voxel is left, which has no variance, so that the loss and its
# gradient are 0 whatever the scans are: a registration stays as it is, and nothing warns. Rectangular and Gaussian
# windows are right. No thread about it was found.
#
# Seen (weights of the window without their divisor; loss of a random volume with itself and with another one):
#   size  weights                 itself  another
#   3     0 1 0                    0       0
#   5     1 2 3 2 1               -1      -0.10
#   7     0 1 2 3 2 1 0           -1      -0.10
#   9     1 2 3 4 5 4 3 2 1       -1      -0.16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss

generator = torch.Generator().manual_seed(0)
scan, other = torch.rand(2, 1, 1, 20, 20, 20, generator=generator)
expected = {3: (0, 1, 0), 5: (1, 2, 3, 2, 1), 7: (0, 1, 2, 3, 2, 1, 0), 9: (1, 2, 3, 4, 5, 4, 3, 2, 1)}
for size, weights in expected.items():
    loss = LocalNormalizedCrossCorrelationLoss(kernel_size=size, kernel_type="triangular")
    seen = (loss.kernel / loss.kernel[loss.kernel > 0].min()).round().int().tolist()
    moving = other.clone().requires_grad_()
    value = loss(moving, scan)
    (gradient,) = torch.autograd.grad(value, moving)
    itself, step = loss(scan, scan).item(), gradient.abs().max().item()
    print(f"size {size}, weights {seen}, itself {itself:.2f}, another {value.item():.2f}, gradient {step:.1g}")
    assert tuple(seen) == weights, "the behaviour has changed"
    if size == 3:
        assert abs(itself) < 1e-6 and abs(value.item()) < 1e-6, "the behaviour has changed"
    else:
        assert abs(itself + 1) < 0.01 and -0.2 < value.item() < -0.01 and step > 0
rectangular = LocalNormalizedCrossCorrelationLoss(kernel_size=3)
print("rectangular window of 3, itself", rectangular(scan, scan).item())
assert abs(rectangular(scan, scan).item() + 1) < 0.01
END
