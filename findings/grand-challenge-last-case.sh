#!/usr/bin/env bash
# grand-challenge-metrics: the confidence interval of an AUC of 0.9 is 1 to 1 if the missed case is last in the list.
#
# grand-challenge-metrics 0.6.0, scikit-learn 1.9.1. get_bootstrapped_roc_ci_curves is said to draw as many cases as
# there are, at random and with replacement. The last case is never drawn, since the upper end of the range is
# exclusive and one is subtracted from it all the same. The curves and the interval ignore that case: they depend on
# the order of the cases, and may not contain the AUC. With few cases, as for rare lesions, this is visible.
# get_bootstrapped_ci_point_error draws in the same way. The documentation does not mention it.
#
# Seen (10 scans with a lesion and 10 without; one lesion has the lowest score; 95 % interval of the AUC):
#   the missed lesion  AUC  interval    a bootstrap of all cases
#   last in the list   0.9  1.00 - 1    0.67 - 1
#   first in the list  0.9  0.62 - 1    0.67 - 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 grand-challenge-metrics==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
from importlib.metadata import version

import numpy as np
from grand_challenge_metrics.roc import get_bootstrapped_roc_ci_curves
from sklearn.metrics import roc_auc_score

print("grand-challenge-metrics", version("grand-challenge-metrics"))
truth = np.repeat([0, 1], 10)
scores = np.concatenate([np.linspace(0.1, 0.4, 10), np.linspace(0.6, 0.9, 9), [0]])


def by_hand(scores, truth):
    draws = np.random.default_rng(0).integers(0, len(truth), (4000, len(truth)))
    areas = [roc_auc_score(truth[draw], scores[draw]) for draw in draws if len(set(truth[draw])) == 2]
    return np.percentile(areas, (2.5, 97.5))


def interval(name, order):
    result = get_bootstrapped_roc_ci_curves(scores[order], truth[order], num_bootstraps=1000)
    seen = result.low_az_val, result.high_az_val
    area = roc_auc_score(truth[order], scores[order])
    print(name, "AUC", area, "interval", np.round(seen, 2), "all cases", np.round(by_hand(scores, truth), 2))
    assert np.isclose(area, 0.9)
    return seen


last = interval("missed lesion last", np.arange(20))
first = interval("missed lesion first", np.roll(np.arange(20), 1))
low, high = by_hand(scores, truth)
assert np.allclose((low, high), (0.67, 1), atol=0.01)
assert np.allclose((last, first), ((1, 1), (0.62, 1)), atol=0.01), "the behaviour has changed"
END
