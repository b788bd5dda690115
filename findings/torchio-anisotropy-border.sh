#!/usr/bin/env bash
# TorchIO: RandomAnisotropy sets the first and last slices of a CT to 0, that is, water instead of air.
#
# torchio 1.2.1, torch 2.13.0. RandomAnisotropy simulates thick slices: it takes every n-th slice and interpolates to
# the grid of the scan. One expects that a uniform volume stays as it is. The thick slices are centred, and their
# number is rounded down, so that they cover less than the scan: up to n - 1 slices are outside of them. Resample
# fills these with 0, while RandomAffine uses the minimum of the scan. The slices are black in an MR and water in a
# CT, whose air is -1000, and the labels are not changed: an organ at the border of a patch loses its image. How many
# slices, depends on the random factor. The documentation does not mention it, and there is no option. No issue about
# it was found. Resample with a target image or an affine does the same for what is outside of the scan.
#
# Seen (a uniform CT of -1000 HU, factors of 1.5, 1.6, ..., 5, as by default; slices that became 0 HU):
#   slices  factors with such slices  largest number of them
#   16      27 of 36                  4
#   64      31 of 36                  4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 torchio==1.2.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
import torchio


def slices(size, factor):
    """Slices of a uniform volume that are changed, and those outside of the thick slices, by their extent."""
    image = torchio.ScalarImage(tensor=torch.full((1, 8, 8, size), -1000.0))
    transform = torchio.RandomAnisotropy(axes=2, downsampling=(factor, factor))
    values = transform(image).data[0, 4, 4]
    changed = np.flatnonzero(~torch.isclose(values, torch.tensor(-1000.0), atol=0.1))
    assert (values[changed] == 0).all(), "the behaviour has changed"
    covered = np.floor(size / factor) * factor
    outside = np.flatnonzero(np.abs(np.arange(size) - (size - 1) / 2) > covered / 2 + 1e-4)
    return changed, outside


for size in (16, 64):
    numbers = []
    for factor in np.arange(15, 51, dtype=np.float32) / 10:
        changed, outside = slices(size, float(factor))
        numbers.append(len(changed))
        assert set(outside) <= set(changed) and len(changed) <= len(outside) + 2, "the behaviour has changed"
    print(size, "slices:", np.count_nonzero(numbers), "of", len(numbers), "factors, at most", max(numbers))
    assert np.count_nonzero(numbers) > 10 and max(numbers) > 2, "the behaviour has changed"
changed, _ = slices(64, 5.0)
print("64 slices, factor 5:", changed)
END
