#!/usr/bin/env bash
# ANTsPy: a closing or a dilation turns the first organ into the second one, and a list with one organ means all organs.
#
# antspyx 0.6.3. multi_label_morphology erodes, dilates, opens or closes the labels of a segmentation, or only those of
# label_list. By its documentation, dilation and closing "preserve pre-existing labels". But what is added to a label
# should leave out the voxels that have it already, and does so only for labels above 1 (other_labels is the output
# minus 1 in the organ, not minus its label): the label 1 is added to itself, and the organ has the label 2. With
# dilation_mask, 2 also becomes 4. After a closing, nothing of the first organ is left. And a label_list of one label is
# replaced by all labels (if label_list is None or its length is 1). No thread about it was found.
#
# Seen (voxels with the labels 1, 2, 3 and 4; in brackets, each organ alone by scipy with the same ball):
#   original                    800 1000  800    0
#   dilation                   1408 3392 2208    0  (2208 2592 2208 0)
#   dilation in a mask of all  1408 2392 2208 1000  (2208 2592 2208 0)
#   closing                       0 1800  800    0  ( 800 1000  800 0)
#   dilation of [2]            1408 3392 2208    0  ( 800 2592  800 0)
#   erosion of [2]              144  216  144    0  ( 800  216  800 0)
#   erosion                     144  216  144    0  ( 144  216  144 0)
#   opening                     704  896  704    0  ( 704  896  704 0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q antspyx==0.6.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import ants
import numpy as np
from scipy import ndimage

organs = np.zeros((40, 40, 40), np.float32)
organs[8:16, 10:20, 10:20] = 1
organs[22:32, 10:20, 10:20] = 2
organs[12:20, 26:36, 10:20] = 3
voxel = np.zeros((5, 5, 5), np.float32)
voxel[2, 2, 2] = 1
ball = ants.iMath(ants.from_numpy(voxel), "MD", 2).numpy() > 0
image, everywhere = ants.from_numpy(organs), ants.from_numpy(np.ones_like(organs))


def count(labels):
    return [int((labels == label).sum()) for label in (1, 2, 3, 4)]


def by_scipy(operation, labels):
    result = organs.copy()
    for label in labels:
        changed = getattr(ndimage, "binary_" + operation)(organs == label, ball)
        result[changed & (organs == 0)] = label
        result[(organs == label) & ~changed] = 0
    return result


names = {"MD": "dilation", "ME": "erosion", "MC": "closing", "MO": "opening"}
for short, options, expected in (
    ("MD", {}, [1408, 3392, 2208, 0]),
    ("MD", {"dilation_mask": everywhere}, [1408, 2392, 2208, 1000]),
    ("MC", {}, [0, 1800, 800, 0]),
    ("MD", {"label_list": [2]}, [1408, 3392, 2208, 0]),
    ("ME", {"label_list": [2]}, [144, 216, 144, 0]),
    ("ME", {}, [144, 216, 144, 0]),
    ("MO", {}, [704, 896, 704, 0]),
):
    seen = count(ants.multi_label_morphology(image, short, 2, **options).numpy())
    true = count(by_scipy(names[short], options.get("label_list", (1, 2, 3))))
    print(names[short], *options, seen, "true", true)
    assert seen == expected, "the behaviour has changed"
    assert (seen == true) == (short in ("ME", "MO") and not options), "the behaviour has changed"
END
