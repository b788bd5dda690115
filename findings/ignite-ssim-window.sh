#!/usr/bin/env bash
# Ignite: with a uniform window of 3 voxels, the SSIM of two unrelated volumes is 0.99.
#
# pytorch-ignite 0.5.5, torch 2.13.0. SSIM(gaussian=False, kernel_size=3) uses a "uniform kernel" instead of a
# Gaussian one. One expects means over 3 voxels along each axis. The weights are always 1/5, for the middle 5 voxels:
# a window of 3 has a sum of 0.6, or 0.2 in 3-D, so that a part of the squared mean counts as variance and covariance.
# If the mean is large compared with the contrast, as for a CT with 1024 added to its values, everything is similar.
# Windows of 7 and 11 are windows of 5, without a message. In 3-D, kernels with unequal sizes, for thick slices, are
# also wrong with a Gaussian: the volume is padded along the wrong axes, so that some of its border counts more than
# once and some does not count. No issue about it was found.
#
# Seen (two volumes of 16 x 32 x 32 with independent noise, 1000 +- 100; in brackets, by means over the window):
#   uniform window of 3, 5, 11            0.99 (0.04)  0.04 (0.04)  0.04 (0.04, the same as a window of 5)
#   Gaussian window of 3, 5, 11           0.04 (0.04)  0.04 (0.04)  0.04 (0.04)
#   Gaussian window of 3 x 11 x 11        0.92 (0.83), for volumes that differ in six rows only
#   Gaussian window of 11 x 3 x 11        0.77 (0.82), for the same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pytorch-ignite==0.5.5
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from ignite.metrics import SSIM

torch.manual_seed(0)
volumes = 1000 + 100 * torch.randn(2, 1, 1, 16, 32, 32)
edge = volumes[0].clone()
edge[:, :, :, :6] = volumes[1][:, :, :, :6]  # the same but for six rows


def seen(x, y, **options):
    metric = SSIM(data_range=1000, ndims=3, **options)
    metric.update((x, y))
    return metric.compute()


def expected(x, y, kernel_size, gaussian, sigma=1.5):
    """Mean over the voxels of the volume, as float64, by one window along each axis."""

    def mean(z):
        for axis, size in zip((2, 3, 4), kernel_size):
            z = z.movedim(axis, -1)
            shape = z.shape
            z = torch.nn.functional.pad(z.reshape(1, -1, shape[-1]), (size // 2,) * 2, mode="reflect")
            weights = torch.arange(-(size // 2), size // 2 + 1, dtype=z.dtype)
            weights = torch.exp(-0.5 * (weights / sigma) ** 2) if gaussian else torch.ones_like(weights)
            z = (z.unfold(-1, size, 1) @ (weights / weights.sum())).reshape(shape).movedim(-1, axis)
        return z

    x, y = x.double(), y.double()
    a, b = mean(x), mean(y)
    variances, covariance = mean(x * x) - a * a + mean(y * y) - b * b, mean(x * y) - a * b
    c1, c2 = (0.01 * 1000) ** 2, (0.03 * 1000) ** 2
    return ((2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variances + c2))).mean().item()


for size in (3, 5, 7, 11):
    for gaussian in (False, True):
        result = seen(*volumes, kernel_size=size, gaussian=gaussian)
        right, five = (expected(*volumes, (n,) * 3, gaussian) for n in (size, 5))
        print(size, "Gaussian" if gaussian else "uniform", f"{result:.4f} ({right:.4f})")
        if gaussian:
            assert abs(result - right) < 1e-3
        elif size == 3:
            assert result > 0.98 and right < 0.1, "the behaviour has changed"
        else:
            assert abs(result - five) < 1e-3, "the behaviour has changed"
for kernel in ((3, 11, 11), (11, 3, 11), (11, 11, 3)):
    result = seen(volumes[0], edge, kernel_size=kernel, gaussian=True)
    right = expected(volumes[0], edge, kernel, True)
    print(*kernel, f"Gaussian {result:.4f} ({right:.4f})")
    assert abs(result - right) > 5e-3 and 0.8 < right < 0.85, "the behaviour has changed"
END
