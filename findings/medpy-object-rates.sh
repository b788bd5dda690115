#!/usr/bin/env bash
# MedPy: a prediction that misses three of four lesions has a true positive rate of 1; with false positives, it falls.
#
# MedPy 0.5.2. obj_tpr(result, reference) is the true positive rate of objects: one expects the share of lesions that
# are found, and of obj_fpr the share of the objects of the result that are no lesion. But obj_tpr divides by the number
# of objects of the result, so that it is the precision, and obj_fpr is the share of lesions that are missed. More false
# positives lower the true positive rate and leave the false positive rate at 0. The docstrings say both: the first
# sentences describe what is returned; the notes and all examples that are not symmetric describe what one expects. With
# the arguments exchanged, the results are as expected.
#
# Seen (4 lesions; in brackets, counted by hand; for the example, also its documented result):
#   prediction                            obj_tpr       obj_fpr
#   one of the lesions                    1     (0.25)  0.75  (0)
#   all lesions and 12 others             0.25  (1)     0     (0.75)
#   the example [1,0,1,0,0], [1,0,1,0,1]  1     (0.67)  0.33  (0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7 MedPy==0.5.2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
from importlib.metadata import version

import numpy as np
from medpy.metric.binary import obj_fpr, obj_tpr
from scipy import ndimage


def found(objects, mask):
    labels, count = ndimage.label(objects)
    return sum(mask[labels == label].any() for label in range(1, count + 1)) / count


def rates(name, result, reference):
    seen = obj_tpr(result, reference), obj_fpr(result, reference)
    expected = found(reference, result), 1 - found(result, reference)
    swapped = obj_tpr(reference, result), obj_fpr(reference, result)
    print(name, "tpr, fpr", np.round(seen, 2), "expected", np.round(expected, 2))
    assert np.allclose(swapped, expected), "the behaviour has changed"
    return seen


print("MedPy", version("MedPy"))
truth = np.zeros((30, 30, 30), bool)
for x in range(2, 30, 8):
    truth[4:7, 4:7, x : x + 3] = True
one = truth.copy()
one[..., 8:] = False
more = truth | np.roll(truth, 6, 0) | np.roll(truth, 12, 0) | np.roll(truth, 18, 0)
example = np.array([1, 0, 1, 0, 0]), np.array([1, 0, 1, 0, 1])
results = [rates("one of four", one, truth), rates("all and 12 others", more, truth), rates("example", *example)]
assert np.allclose(results, [(1, 0.75), (0.25, 0), (1, 1 / 3)]), "the behaviour has changed"
END
