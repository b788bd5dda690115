#!/usr/bin/env bash
# MONAI: a detector that finds all lesions has a FROC score below 1, which a worse false positive raises.
#
# monai 1.6.1, torch 2.13.0. compute_froc_curve_data gives the sensitivity and the false positives per scan for each
# threshold of the probabilities, and compute_froc_score the mean sensitivity at 0.25 to 8 false positives. One expects
# a sensitivity of 1 if each lesion is hit. But the lowest probability is left out of the thresholds. That suits missed
# lesions, which compute_fp_tp_probs_nd lists with a probability of 0; if nothing is missed, the lesion with the lowest
# probability counts as missed. If all have the same probability, as for a mask without probabilities, the score is 0.
# One false positive with a lower probability sets it right, so that a worse detector has a better score. No thread
# about it was found. (picai-eval-sensitivity is the same kind of fault in another library.)
#
# Seen (two scans with two lesions each, all hit; score, in brackets with all thresholds):
#   probabilities of the lesions  false positives  score
#   0.9 0.8 0.7 0.6               none             0.75 (1)
#   0.9 0.8 0.7 0.6               one with 0.5     1    (1)
#   1 1 1 1                       none             0    (1)
#   1 1 1 1                       one with 0.5     1    (1)
#   0.9 0.8 0.7, one missed       none             0.75 (0.75)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
from monai.metrics import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score

lesions = np.zeros((2, 20, 20, 20), int)
for scan, label, corner in ((0, 1, 2), (0, 2, 10), (1, 1, 4), (1, 2, 12)):
    lesions[scan, corner : corner + 4, corner : corner + 4, corner : corner + 4] = label
centres = [(0, (3, 3, 3)), (0, (11, 11, 11)), (1, (5, 5, 5)), (1, (13, 13, 13))]
rates = 0.25, 0.5, 1, 2, 4, 8


def score(probabilities, false):
    wrong, hit, targets = [], [], 0
    for scan in range(2):
        found = [(p, place) for p, (s, place) in zip(probabilities, centres, strict=False) if s == scan]
        found += [(p, (18, 18, 18)) for p in false if scan == 0]
        values, places = (np.array(x) for x in zip(*found, strict=True))
        w, h, n = compute_fp_tp_probs_nd(values, places, lesions[scan])
        wrong, hit, targets = [*wrong, *w], [*hit, *h], targets + n
    curve = compute_froc_curve_data(np.array(wrong), np.array(hit), targets, 2)
    return compute_froc_score(*curve, eval_thresholds=rates)


def plain(probabilities, false):
    """The mean over the rates of the largest sensitivity at no more false positives per scan."""
    points = [(0, 0)]
    for threshold in {*probabilities, *false}:
        points.append((sum(p >= threshold for p in false) / 2, sum(p >= threshold for p in probabilities) / 4))
    return np.mean([max(sensitivity for rate, sensitivity in points if rate <= limit) for limit in rates])


four, same = (0.9, 0.8, 0.7, 0.6), (1, 1, 1, 1)
cases = [(four, (), 0.75), (four, (0.5,), 1), (same, (), 0), (same, (0.5,), 1), (four[:3], (), 0.75)]
for probabilities, false, value in cases:
    seen, true = score(probabilities, false), plain(probabilities, false)
    print(probabilities, "false positives", false, f"seen {seen:.3f}, true {true:.3f}")
    assert abs(seen - value) < 1e-6, "the behaviour has changed"
    assert true == len(probabilities) / 4
END
