#!/usr/bin/env bash
# GeneralizedDiceLoss: false positives in a patch without a lesion cost nothing.
#
# monai 1.6.1, torch 2.13.0. A binary network (one channel with a sigmoid) and a patch with an empty label, like most
# patches of a volume with small lesions. The weight of a class is the inverse of its squared volume. If all classes of a
# sample are empty, MONAI replaces the infinite weight by the largest finite weight of the sample, which is then 0. So
# loss and gradient are 0 for any prediction, also if the batch contains another patch with a lesion. DiceLoss gives 1.
# batch=True (volumes summed over the batch) gives more than 0.5 if another patch has a lesion.
#
# Seen (loss for an empty label, everything predicted as lesion; largest gradient):
#   DiceLoss                           1.0   above 0, small: the logits are saturated
#   GeneralizedDiceLoss                0.0   0.0
#   GeneralizedDiceLoss(batch=True)    above 0.5 beside a patch with a lesion
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss

empty = torch.zeros(1, 1, 8, 8, 8)
lesion = empty.clone()
lesion[..., 2:4, 2:4, 2:4] = 1


def loss(function, label, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits, label)
    value.backward()
    return value.item(), logits.grad.abs().amax((1, 2, 3, 4)).tolist()


everything = torch.full((1, 1, 8, 8, 8), 3.0)
dice = loss(DiceLoss(sigmoid=True), empty, everything)
generalized = loss(GeneralizedDiceLoss(sigmoid=True), empty, everything)
print("DiceLoss", *dice)
print("GeneralizedDiceLoss", *generalized)
assert dice[0] > 0.99 and dice[1][0] > 0
assert generalized == (0.0, [0.0]), "the behaviour has changed"

labels = torch.cat([lesion, empty])
logits = torch.cat([lesion * 20 - 10, everything])
beside = loss(GeneralizedDiceLoss(sigmoid=True), labels, logits)
summed = loss(GeneralizedDiceLoss(sigmoid=True, batch=True), labels, logits)
print("beside a perfect patch", *beside)
print("with batch=True", *summed)
assert beside[0] < 0.01 and beside[1][1] == 0.0, "the behaviour has changed"
assert summed[0] > 0.5 and summed[1][1] > 0
END
