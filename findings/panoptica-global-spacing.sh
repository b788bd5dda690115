#!/usr/bin/env bash
# panoptica: with slices of 5 mm, the distances of a lesion are in mm, and those of the whole mask are in voxels.
#
# panoptica 2.1.7, nibabel 5.4.2. The evaluator takes the spacing from the files, or from `voxelspacing`. One expects
# that it holds for all distances of the result. It does for the metrics of each lesion (sq_), but not for
# global_metrics: global_bin_hd95, global_bin_assd and global_bin_nsd count voxels. With a single lesion, both compare
# the same two masks, so that they should be equal. A miss by a slice of 5 mm has the same global distance as one by a
# pixel of 0.5 mm. On a grid of 1 mm the distances agree, but the NSD does not: its tolerance, by default the smallest
# spacing, is 0.5 without a spacing. There is no warning, and the documentation does not mention it.
#
# Seen (a lesion of 10 x 10 x 10 voxels, predicted one voxel beside it; of the lesion, and of the whole mask):
#                                 HD95        ASSD          NSD
#   1 x 1 x 1 mm, any axis        1    1      0.34  0.34    1     0.66
#   5 x 0.5 x 0.5 mm, a slice     5    1      1.15  0.34    0.72  0.66
#   5 x 0.5 x 0.5 mm, a pixel     0.5  1      0.17  0.34    1     0.66
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.2.6 scipy==1.17.1 nibabel==5.4.2 connected-components-3d==3.29.0 \
    panoptica==2.1.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import nibabel
import numpy as np
from panoptica import (
    ConnectedComponentsInstanceApproximator,
    InputType,
    Metric,
    NaiveThresholdMatching,
    Panoptica_Evaluator,
)

metrics = [Metric.HD95, Metric.ASSD, Metric.NSD]
evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=NaiveThresholdMatching(),
    instance_metrics=metrics,
    global_metrics=metrics,
)
truth = np.zeros((30, 30, 30), np.uint8)
truth[10:20, 10:20, 10:20] = 1


def evaluate(axis, spacing):
    for name, mask in (("truth.nii", truth), ("prediction.nii", np.roll(truth, 1, axis))):
        nibabel.save(nibabel.Nifti1Image(mask, np.diag((*spacing, 1))), name)
    result = evaluator.evaluate("prediction.nii", "truth.nii", verbose=False)["ungrouped"].to_dict()
    lesion = tuple(round(float(result[f"sq_{name}"]), 2) for name in ("hd95", "assd", "nsd"))
    whole = tuple(round(float(result[f"global_bin_{name}"]), 2) for name in ("hd95", "assd", "nsd"))
    print(spacing, "axis", axis, "lesion", lesion, "whole mask", whole)
    return lesion, whole


for axis in range(3):
    assert evaluate(axis, (1, 1, 1)) == ((1, 0.34, 1), (1, 0.34, 0.66)), "the behaviour has changed"
    expected = (5, 1.15, 0.72) if axis == 0 else (0.5, 0.17, 1)
    assert evaluate(axis, (5, 0.5, 0.5)) == (expected, (1, 0.34, 0.66)), "the behaviour has changed"
END
