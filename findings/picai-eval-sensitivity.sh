#!/usr/bin/env bash
# picai_eval: a detector that finds every lesion has a sensitivity of 0, and a false positive raises it from 0.5 to 1.
#
# picai_eval 1.4.13. lesion_TPR and lesion_FPR are the FROC curve, and lesion_TPR_at_FPR the sensitivity at a number of
# false positives per scan. One expects that the curve ends at the share of the lesions that are found. But the last
# threshold is always replaced by a point at infinity, as if it were the 0 that missed lesions get. If no lesion is
# missed, it is the lowest confidence of a prediction, and what is found at that confidence is lost. If all have the
# same confidence, as in a mask, the sensitivity is 0 everywhere. AP and AUROC of the same result are right. The
# documentation does not mention it.
#
# Seen (no false positives, unless noted; sensitivity at 1 false positive per scan, which is the highest of the curve):
#                                             sensitivity  AP   found
#   a mask with 2 of 2 lesions                0            1    1
#   2 lesions of confidence 0.9 and 0.6       0.5          1    1
#   the same and a false positive of 0.3      1            1    1
#   10 lesions of confidence 0.1, ..., 1      0.9          1    1
#   a mask with 1 of 2 lesions                0.5          0.5  0.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 SimpleITK==2.5.7 tqdm==4.70.1 \
    packaging==26.4
"$folder/venv/bin/pip" install -q --no-deps picai_eval==1.4.13
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
from picai_eval import evaluate


def scan(confidences):
    values = np.zeros((8, 8, 4 * 10))
    for k, confidence in enumerate(confidences):
        values[2:5, 2:5, 4 * k : 4 * k + 3] = confidence
    return values


def sensitivity(name, lesions, predicted, others=()):
    truth = [scan([1] * lesions), scan([])]
    metrics = evaluate([scan(predicted), scan(others)], [value.astype(int) for value in truth], num_parallel_calls=1)
    assert metrics.num_lesions == lesions and metrics.auroc == 1
    found = np.count_nonzero(predicted) / lesions
    result = metrics.lesion_TPR_at_FPR(1)
    print(name, result, "AP", metrics.AP, "found", found, "FROC", metrics.lesion_TPR, metrics.lesion_FPR)
    assert np.isclose(metrics.AP, found) and result == metrics.lesion_TPR.max()
    return result


results = (
    sensitivity("mask", 2, [1, 1]),
    sensitivity("0.9 and 0.6", 2, [0.9, 0.6]),
    sensitivity("with a false positive", 2, [0.9, 0.6], [0.3]),
    sensitivity("10 lesions", 10, np.arange(1, 11) / 10),
    sensitivity("one missed", 2, [1, 0]),
)
assert np.allclose(results, (0, 0.5, 1, 0.9, 0.5)), "the behaviour has changed"
END
