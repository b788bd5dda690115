#!/usr/bin/env bash
# MISeval: the Hausdorff distance of two masks without a common pixel is 0.
#
# miseval 1.3.0, hausdorff 0.2.6. evaluate(truth, prediction, metric="HD") gives the two masks to hausdorff_distance,
# which takes lists of points. So each row of the mask is one point with as many coordinates as there are columns, and
# the position of the row is lost. If the same rows occur in both masks, as for any displacement along the first axis,
# the distance is 0. Otherwise it is the root of the number of pixels by which two rows differ, however far apart they
# are: transposed masks have another distance. Masks with three axes are refused, so that scans are evaluated slice by
# slice. The average Hausdorff distance ("AHD") of the same masks is right.
#
# Seen (squares of 5 x 5 pixels, Dice 0, displaced along the first axis):
#   displaced by  HD  HD of the transposed masks  AHD  true
#   9             0   2.24                        9    9
#   20            0   2.24                        20   20
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 hausdorff==0.2.6 miseval==1.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
from miseval import evaluate
from scipy.spatial.distance import directed_hausdorff

truth = np.zeros((40, 40), int)
truth[5:10, 5:10] = 1
for shift in (9, 20):
    prediction = np.roll(truth, shift, axis=0)
    points, others = np.argwhere(truth), np.argwhere(prediction)
    true = max(directed_hausdorff(points, others)[0], directed_hausdorff(others, points)[0])
    distance = evaluate(truth, prediction, metric="HD")
    transposed = evaluate(truth.T, prediction.T, metric="HD")
    average = evaluate(truth, prediction, metric="AHD")
    print(shift, distance, transposed, average, true)
    assert evaluate(truth, prediction, metric="DSC") == 0 and average == true == shift
    assert distance == 0 and np.isclose(transposed, np.sqrt(5)), "the behaviour has changed"
END
