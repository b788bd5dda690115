#!/usr/bin/env bash
# grand-challenge-metrics: the accuracy is 0 if a single voxel of a million is wrong.
#
# grand-challenge-metrics 0.6.0. accuracies_from_confusion_matrix is said to compute an accuracy for each class. The
# division by the number of voxels is a floor division: the result is 1 if nothing is wrong, and 0 otherwise. A class
# without any error has 1 next to classes with 0. Dice and Jaccard, from the same confusion matrix, are right. The
# documentation says only that accuracy scores are returned.
#
# Seen (classes 0, 1 and 2 in 100 x 100 x 100 voxels; in brackets, the share of voxels):
#   errors                           class 0            class 1            class 2
#   none                             1  (1)             1  (1)             1  (1)
#   one voxel, 0 instead of 1        0  (0.999999)      0  (0.999999)      1  (1)
#   1000 voxels, 1 instead of 2      1  (1)             0  (0.999)         0  (0.999)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 grand-challenge-metrics==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
from importlib.metadata import version

import numpy as np
from grand_challenge_metrics.stats import (
    accuracies_from_confusion_matrix,
    calculate_confusion_matrix,
    dice_from_confusion_matrix,
)

print("grand-challenge-metrics", version("grand-challenge-metrics"))
truth = np.zeros((100, 100, 100), np.uint8)
truth[20:40, 20:40, 20:40] = 1
truth[60:80, 60:80, 60:80] = 2
one, more = truth.copy(), truth.copy()
one[20, 20, 20] = 0
more[60:70, 60:70, 60:70] = 1
results = []
for name, prediction in (("none", truth), ("one voxel", one), ("1000 voxels", more)):
    matrix = calculate_confusion_matrix(truth, prediction, [0, 1, 2])
    seen = accuracies_from_confusion_matrix(matrix)
    right = [np.mean((truth == label) == (prediction == label)) for label in range(3)]
    print(name, "accuracies", seen, "expected", right, "Dice", np.round(dice_from_confusion_matrix(matrix), 5))
    assert min(right) >= 0.999
    results.append(seen)
assert np.array_equal(results, [(1, 1, 1), (0, 0, 1), (1, 0, 0)]), "the behaviour has changed"
END
