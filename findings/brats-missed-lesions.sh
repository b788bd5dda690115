#!/usr/bin/env bash
# BraTS evaluation: for glioma, the lesion-wise Dice of a prediction that misses nine of ten lesions is 1.
#
# BraTS-evaluation 0.0.10, panoptica 2.1.7. This is the official package for the BraTS challenges. By the lesion-wise
# metrics that BraTS introduced in 2023, each missed and each false lesion has a Dice of 0, and the mean is taken over
# all of them. `brats-parse-metrics mets`, for metastases, does so. `brats-parse-metrics seg`, for glioma, meningioma
# and the other tasks, writes columns of the same names with the mean over the matched lesions alone. So a prediction
# can get better if it leaves out the difficult lesions. An empty prediction has an infinite lesion-wise HD95, so that the
# mean of all cases is infinite; the global HD95 is replaced by 373, as both are in `mets`. The documentation does not
# mention a difference. The columns all_instance_tp, _fp and _fn are right in both.
#
# Seen (10 enhancing tumours; lesionwise_dsc_mean_et and lesionwise_hd95_mean_et):
#   prediction                   seg, gli     mets
#   1 of 10 lesions, exact       1    0       0.1   336
#   10 of 10, and 2 false ones   1    0       0.83  62
#   10 of 10, each too small     0.8  2       0.8   2
#   empty                        0    inf     0     373
#   mean of the four cases       0.7  inf     0.43  193
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.2.6 scipy==1.17.1 pandas==2.3.3 nibabel==5.4.2 SimpleITK==2.5.7 \
    connected-components-3d==3.29.0 panoptica==2.1.7 BraTS-evaluation==0.0.10
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import itertools
import os
import subprocess
import sys

import nibabel
import numpy as np
import pandas


def tumours(centres, height=6):
    mask = np.zeros((60, 60, 60), np.uint8)
    for i, j, k in centres:
        mask[i - 3 : i + 3, j - 3 : j + 3, k - 3 : k - 3 + height] = 3
    return mask


def run(program, *arguments):
    program = os.path.join(os.path.dirname(sys.executable), program)
    subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


places = list(itertools.product((10, 30, 50), repeat=3))
truth = tumours(places[:10])
predictions = tumours(places[:1]), tumours(places[:12]), tumours(places[:10], height=4), np.zeros_like(truth)
for name in ("truth", "prediction"):
    os.mkdir(name)
for case, prediction in enumerate(predictions):
    for name, mask in (("truth", truth), ("prediction", prediction)):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), f"{name}/BraTS-0000{case}-000.nii.gz")

counts = [(1, 0, 9), (10, 2, 0), (10, 0, 0), (0, 0, 10)]
for task, parser, dice, hd95 in (
    ("gli", "seg", [1, 1, 0.8, 0, 0.7], [0, 0, 2, np.inf, np.inf]),
    ("mets", "mets", [0.1, 0.83, 0.8, 0, 0.43], [335.7, 62.17, 2, 373, 193.22]),
):
    folders = ("--ref_path", "truth", "--pred_path", "prediction")
    run("brats-evaluate", "--config", task, *folders, "--summary_json", "summary.json")
    run("brats-parse-metrics", parser, "--json_path", "summary.json", "--output_csv_path", "scores.csv")
    scores = pandas.read_csv("scores.csv")[:5]  # four cases and their mean
    seen = scores[["lesionwise_dsc_mean_et", "lesionwise_hd95_mean_et", "global_hd95_et"]]
    print(task, seen.round(2).to_string(), sep="\n")
    found = scores[[f"all_instance_{name}_et" for name in ("tp", "fp", "fn")]][:4]
    assert [tuple(row) for row in found.to_numpy(int).tolist()] == counts
    assert np.isfinite(seen["global_hd95_et"]).all()
    assert np.allclose(seen["lesionwise_dsc_mean_et"], dice, atol=0.006), "the behaviour has changed"
    assert np.allclose(seen["lesionwise_hd95_mean_et"], hd95, atol=0.006), "the behaviour has changed"
END
