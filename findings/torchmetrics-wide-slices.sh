#!/usr/bin/env bash
# torchmetrics: the Hausdorff distance of a perfect prediction is 53 pixels if the slice has more columns than rows.
#
# torchmetrics 1.9.0, torch 2.13.0. HausdorffDistance takes slices of any shape. Its map of distances is written with
# the number of rows where the number of columns is needed. For square slices this is the same. For wide ones each
# distance lands at another pixel, without a warning: the result has nothing to do with the masks, and one more column
# is enough. Tall slices raise IndexError. The documentation does not ask for square slices. An open issue
# (Lightning-AI/torchmetrics 3300) reports the error of tall slices and takes wide ones for working.
#
# Seen (a lesion of 20 x 20 pixels in slices of 64 rows; in brackets, by scipy):
#   columns  identical  5 rows lower  10 columns wider
#   64        0   (0)    5   (5)      10  (10)
#   65       25   (0)   25.3 (5)      25  (10)
#   96       53   (0)   53   (5)      53  (10)
#   63       IndexError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.segmentation import HausdorffDistance


def seen(a, b):
    metric = HausdorffDistance(num_classes=1, include_background=True)
    metric.update(*(torch.from_numpy(mask)[None, None].int() for mask in (a, b)))
    return metric.compute().item()


def expected(a, b):
    a, b = (mask & ~ndimage.binary_erosion(mask) for mask in (a, b))
    return max(ndimage.distance_transform_edt(~x)[y].max() for x, y in ((a, b), (b, a)))


def masks(columns):
    lesion = np.zeros((64, columns), bool)
    lesion[20:40, 20:40] = True
    wider = lesion.copy()
    wider[20:40, 20:50] = True
    return lesion, (lesion, np.roll(lesion, 5, 0), wider)


print("torchmetrics", version("torchmetrics"), "torch", torch.__version__)
results = []
for columns in (64, 65, 96):
    lesion, predictions = masks(columns)
    results.append([seen(prediction, lesion) for prediction in predictions])
    right = [expected(prediction, lesion) for prediction in predictions]
    print(columns, "columns:", np.round(results[-1], 1), "expected", right)
    assert np.allclose(right, (0, 5, 10))
lesion, predictions = masks(63)
try:
    print("63 columns:", seen(predictions[0], lesion))
    raised = False
except IndexError as error:
    print("63 columns:", error)
    raised = True
table = (0, 5, 10), (25, 25.32, 25), (53, 53, 53)
assert raised and np.allclose(results, table, atol=0.01), "the behaviour has changed"
END
