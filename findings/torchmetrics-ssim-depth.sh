#!/usr/bin/env bash
# torchmetrics: with a Gaussian of another sigma than 1.5, the SSIM of volumes depends on which axis is the last one.
#
# torchmetrics 1.9.0, torch 2.13.0. structural_similarity_index_measure compares volumes in Gaussian windows, after a
# padding by reflection, so that there is a window for each voxel. The padding of the first two axes is that of the
# Gaussian, which has 3.5 sigma on each side, but that of the last axis is half of kernel_size, which is documented to
# be ignored with a Gaussian (`pad_d` in _ssim_update). For the default sigma of 1.5, both are 5. For a sigma of 3, the
# Gaussian has 11, so that six slices at each end of the last axis are left out of the mean, and the map of
# return_full_image has 28 instead of 40 slices; for 0.5, slices are reflected to fill it up and are counted twice. So
# an artifact in these slices does not count, or twice, unless the scan is stored in another orientation. A kernel_size
# of 2 * int(3.5 * sigma + 0.5) + 1 sets it right. No thread about it was found; torchmetrics#1656 and torchmetrics#2718
# are about removing the padding.
#
# Seen (random volumes of 40 x 40 x 40 voxels that differ in four slices at one end of an axis; in brackets by scipy):
#   sigma  slices of the last axis  of the second axis  of the first axis  size of the map
#   0.5    0.852 (0.901)            0.901 (0.901)       0.901 (0.901)      40 40 46
#   1.5    0.900 (0.900)            0.900 (0.900)       0.900 (0.900)      40 40 40
#   3      0.984 (0.902)            0.903 (0.902)       0.902 (0.902)      40 40 28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

generator = torch.Generator().manual_seed(0)
scan = torch.rand(1, 1, 40, 40, 40, generator=generator)
other = scan.clone()
other[..., :4] = torch.rand(1, 1, 40, 40, 4, generator=generator)


def plain(one, other, sigma):
    """The mean over all voxels, with the same Gaussian by scipy."""

    def mean(x):
        return ndimage.gaussian_filter(x, sigma, truncate=3.5, mode="mirror")

    x, y = (a[0, 0].double().numpy() for a in (one, other))
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    luminance = (2 * mean(x) * mean(y) + 1e-4) / (mean(x) ** 2 + mean(y) ** 2 + 1e-4)
    return np.mean(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))


for sigma, slices in ((0.5, 46), (1.5, 40), (3.0, 28)):
    for axis in (4, 3, 2):
        pair = scan.transpose(axis, 4), other.transpose(axis, 4)
        seen, image = ssim(*pair, sigma=sigma, data_range=1.0, return_full_image=True)
        fitting = 2 * int(3.5 * sigma + 0.5) + 1
        right = ssim(*pair, sigma=sigma, kernel_size=fitting, data_range=1.0).item()
        true = plain(*pair, sigma)
        print(f"sigma {sigma}, axis {axis - 2}: seen {seen:.3f}, true {true:.3f}, fitting {right:.3f}", image.shape[2:])
        assert abs(right - true) < 1e-3
        assert tuple(image.shape[2:]) == (40, 40, slices), "the behaviour has changed"
        wrong = axis == 4 and sigma != 1.5
        assert (abs(seen.item() - true) > 0.03) == wrong, "the behaviour has changed"
END
