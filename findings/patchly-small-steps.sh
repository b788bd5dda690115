#!/usr/bin/env bash
# patchly: with steps of an eighth of a patch, the middle of a merged prediction is 3.4e38.
#
# patchly 0.0.19. GridSampler cuts a volume into overlapping patches and Aggregator averages what is predicted for them.
# The patches over each voxel are counted in 8 bits, and there are 8 x 8 x 8 = 512 of them in the middle of a volume if
# the step is an eighth of the patch along each axis: the count is 0 again, and the division by 0 gives infinity, which
# is replaced by the largest float32. Other counts above 255 are 256 too small, and the average too large without such a
# sign: with steps of 5 x 5 x 4 for patches of 35 x 35 x 28, it is up to eight times too large. A comment in the source
# says that 8 bits might be problematic; neither the readme nor the descriptions of the arguments mention it, and there
# is no warning. weights="gaussian" sums the weights in float32, and is right. No thread about it was found.
#
# Seen (a volume between 1 and 2 that is cut and merged again; the largest value, and how many voxels are wrong):
#   patch, step               patches over a voxel  weights="avg"   weights="gaussian"
#   16 x 16 x 16, 4 x 4 x 4    64                   2.0      0 %    2.0  0 %
#   35 x 35 x 28, 5 x 5 x 4   343                   15.5     1 %    2.0  0 %
#   16 x 16 x 16, 2 x 2 x 2   512                   3.4e+38  7 %    2.0  0 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 patchly==0.0.19
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
from patchly import Aggregator, GridSampler

print("patchly", version("patchly"))


def merge(scan, patch, step, weights):
    sampler = GridSampler(image=scan, spatial_size=scan.shape, patch_size=patch, step_size=step)
    aggregator = Aggregator(sampler=sampler, output_size=scan.shape, weights=weights)
    count = np.zeros(scan.shape, int)
    for values, box in sampler:
        aggregator.append(values.copy(), box)
        count[tuple(slice(*limits) for limits in box)] += 1
    return aggregator.get_output(), count


for patch, step, shape, patches, largest in (
    ((16, 16, 16), (4, 4, 4), (32, 32, 32), 64, 2.0),
    ((35, 35, 28), (5, 5, 4), (70, 70, 56), 343, 15.47),
    ((16, 16, 16), (2, 2, 2), (32, 32, 32), 512, np.finfo(np.float32).max),
):
    scan = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    (average, count), (gaussian, _) = (merge(scan, patch, step, weights) for weights in ("avg", "gaussian"))
    wrong = ~np.isclose(average, scan, rtol=1e-3)
    print(patch, step, "patches", count.max(), "largest", average.max(), f"wrong {wrong.mean():.1%}")
    assert count.max() == patches and np.allclose(gaussian, scan, rtol=1e-3)
    assert np.array_equal(wrong, count > 255), "the behaviour has changed"
    assert np.isclose(average.max(), largest, rtol=1e-3), "the behaviour has changed"
    finite = count % 256 > 0
    assert np.allclose(average[finite], (scan * count)[finite] / (count % 256)[finite], rtol=1e-3)
END
