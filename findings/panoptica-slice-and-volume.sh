#!/usr/bin/env bash
# panoptica: the same mask has two lesions as a slice and one as a volume.
#
# panoptica 2.1.7. ConnectedComponentsInstanceApproximator splits a mask into lesions. Without a backend, it uses scipy
# for arrays with two axes and cc3d for arrays with three, as its documentation says. It does not say that each has its
# own connectivity: in scipy, only voxels with a common face are connected, in cc3d also those with a common edge or
# corner. So the number of lesions changes with an axis of length 1. As a volume, a prediction that misses one of two
# lesions has found all of them. With the same backend, slice and volume agree.
#
# Seen (two squares that touch at a corner; one is predicted):
#                        lesions  missed  recognition quality  panoptic quality
#   slice                2        1       0.67                 0.67
#   volume of one slice  1        0       1                    0.5
#   slice, cc3d          1        0       1                    0.5
#   volume, scipy        2        1       0.67                 0.67
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.2.6 scipy==1.17.1 connected-components-3d==3.29.0 panoptica==2.1.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
from panoptica import (
    CCABackend,
    ConnectedComponentsInstanceApproximator,
    InputType,
    NaiveThresholdMatching,
    Panoptica_Evaluator,
)


def evaluate(prediction, truth, backend=None):
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(cca_backend=backend),
        instance_matcher=NaiveThresholdMatching(),
    )
    result = evaluator.evaluate(prediction, truth, verbose=False)["ungrouped"]
    return result.n_ref_instances, result.fn, round(result.rq, 2), round(result.pq, 2)


truth = np.zeros((20, 20), np.uint8)
truth[2:8, 2:8] = 1
prediction = truth.copy()
truth[8:14, 8:14] = 1
one_slice = evaluate(prediction, truth)
volume = evaluate(prediction[None], truth[None])
slice_cc3d = evaluate(prediction, truth, CCABackend.cc3d)
volume_scipy = evaluate(prediction[None], truth[None], CCABackend.scipy)
print("slice", *one_slice)
print("volume of one slice", *volume)
print("slice, cc3d", *slice_cc3d)
print("volume, scipy", *volume_scipy)
assert one_slice == volume_scipy == (2, 1, 0.67, 0.67), "the behaviour has changed"
assert volume == slice_cc3d == (1, 0, 1.0, 0.5), "the behaviour has changed"
END
