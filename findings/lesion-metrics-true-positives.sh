#!/usr/bin/env bash
# lesion-metrics: the lesion-wise true positive rate of a perfect prediction is 0, that of only false positives is 1.
#
# lesion-metrics 0.1.12, pymedio 0.1.9. Metrics.from_filenames computes all metrics of two files. For `ltpr` and
# `truth_count` it returns the false discovery rate and the number of lesions of the prediction, which are also in
# `lfdr` and `pred_count`. `isbi15_score` is computed from it: a perfect prediction has 0.67 in place of 1. The
# functions of lesion_metrics.metrics and the command `lesion-metrics` are right. Nothing hints at it; the readme names
# only the command.
#
# Seen (4 lesions; in brackets, from the functions):
#   prediction                ltpr        truth_count  isbi15_score
#   the same                  0    (1)     4  (4)      0.67  (1)
#   one of the lesions        0    (0.25)  1  (4)      0.57  (0.65)
#   all and one other         0.2  (1)     5  (4)      0.61  (0.88)
#   two others, none of them  1    (0)     2  (4)      0.33  (0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==1.26.4 scipy==1.17.1 scikit-image==0.26.0 nibabel==3.2.2 pandas==1.5.3 \
    pydicom==2.4.5 SimpleITK==2.5.7 pillow==13.0.0 pymedio==0.1.9 "lesion-metrics[cli]==0.1.12"
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import nibabel
import numpy as np
from lesion_metrics import metrics
from lesion_metrics.helper import Metrics

print("lesion-metrics", version("lesion-metrics"), "pymedio", version("pymedio"))
truth = np.zeros((30, 30, 30), np.uint8)
for x in range(2, 30, 8):
    truth[4:7, 4:7, x : x + 3] = 1
one, more, others = truth.copy(), truth.copy(), np.zeros_like(truth)
one[..., 8:] = 0
more[20:23, 20:23, 2:5] = 1
others[20:23, 20:23, 2:5] = others[20:23, 20:23, 10:13] = 1


def evaluate(name, prediction):
    for file, mask in (("truth.nii", truth), ("prediction.nii", prediction)):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), file)
    result = Metrics.from_filenames("prediction.nii", "truth.nii")
    seen = result.ltpr, result.truth_count, result.isbi15_score
    rate, count = metrics.ltpr(prediction, truth, return_truth_count=True)
    right = rate, count, metrics.isbi15_score(prediction, truth)
    print(name, "ltpr, truth_count, isbi15_score", np.round(seen, 2), "expected", np.round(right, 2))
    return seen, right


results = [
    evaluate("the same", truth),
    evaluate("one of four", one),
    evaluate("all and one other", more),
    evaluate("two others", others),
]
seen, right = np.transpose(results, (1, 0, 2))
assert np.allclose(right, [(1, 4, 1), (0.25, 4, 0.65), (1, 4, 0.88), (0, 4, 0)], atol=0.01)
expected = [(0, 4, 0.67), (0, 1, 0.57), (0.2, 5, 0.61), (1, 2, 0.33)]
assert np.allclose(seen, expected, atol=0.01), "the behaviour has changed"
END
