#!/usr/bin/env bash
# MONAI: the calibration error of a whole scan depends on the number of its voxels.
#
# monai 1.6.1, torch 2.13.0. calibration_binning, which CalibrationErrorMetric uses, adds ones and probabilities in single
# precision, where a sum of ones cannot exceed 2^24 = 16,777,216. Here all voxels have the probability 0.75, and a quarter
# of them is right, so the error is 0.5. For a CT of 512 x 512 x 96, a third of the voxels is not counted, the mean
# probability is 1, and the error is 0.625. The documentation mentions no limit, and there is no warning.
#
# Seen (shape, voxels, voxels counted, mean probability, calibration error):
#   (64, 64, 64) 262144 262144 0.75 0.5
#   (512, 512, 96) 25165824 16777216 1.0 0.625
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import math

import torch
from monai.metrics import CalibrationErrorMetric
from monai.metrics.calibration import calibration_binning

for shape, expected in (
    ((64, 64, 64), (262_144, 0.75, 0.5)),
    ((512, 512, 96), (16_777_216, 1.0, 0.625)),
):
    voxels = math.prod(shape)
    probabilities, right = torch.full((1, 1, *shape), 0.75), torch.zeros(1, 1, *shape)
    right.view(-1)[: voxels // 4] = 1
    mean, _, counts = calibration_binning(probabilities, right, num_bins=10)
    metric = CalibrationErrorMetric(num_bins=10)
    metric(probabilities, right)
    found = int(counts.max()), mean.nan_to_num().max().item(), metric.aggregate().item()
    print(shape, voxels, *found)
    assert found == expected, "the behaviour has changed"
END
