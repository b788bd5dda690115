#!/usr/bin/env bash
# MaskedLoss: perfect logits have a Dice loss of 0.93, because each voxel outside of the mask counts as half a lesion.
#
# monai 1.6.1, torch 2.13.0. MaskedLoss limits a loss to a region, such as the brain or the slices with a label. One
# expects that voxels outside do not matter. It multiplies the logits by the mask, and the loss applies the sigmoid
# after that, so that each voxel outside has a probability of 0.5. The loss of perfect logits depends on the size of the
# crop, and training gets a sixth of the gradient or less. MaskedDiceLoss applies the sigmoid first and is right, but
# other losses with sigmoid or softmax have only MaskedLoss, whose docstring says "applied to both input and target".
#
# Seen (a lesion of 4 x 4 x 4, a mask of 8 x 8 x 8, a crop of 16 x 16 x 16; in brackets, the crop cut to the mask):
#                               loss of perfect logits  largest gradient of logits of 0
#   MaskedDiceLoss              0 (0)                   1.4e-3 (1.4e-3)
#   MaskedLoss of DiceLoss      0.93 (0)                2.3e-4 (1.4e-3)
#   MaskedLoss of DiceCELoss    1.54 (0)                3.6e-4 (2.4e-3)
#   MaskedLoss of FocalLoss     0.15 (0)                7.3e-5 (5.8e-4)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from math import isclose, log

import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, MaskedDiceLoss, MaskedLoss

label = torch.zeros(1, 1, 16, 16, 16)
label[..., 2:6, 2:6, 2:6] = 1
mask = torch.zeros_like(label)
mask[..., :8, :8, :8] = 1
perfect = 40 * label - 20


def loss_and_gradient(loss):
    start = torch.zeros_like(label, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(start), start)
    return loss(perfect).item(), gradient.abs().max().item()


region = (..., slice(8), slice(8), slice(8))
dice = 1 - 128 / (128 + 0.5 * (16**3 - 8**3))  # 1 - 2 * 64 / (64 + 64 + 0.5 for each voxel outside)
outside = 7 / 8  # of the voxels, each with a cross-entropy of log(2)
for masked, plain, expected in (
    (MaskedDiceLoss(sigmoid=True), DiceLoss(sigmoid=True), 0),
    (MaskedLoss(DiceLoss, sigmoid=True), DiceLoss(sigmoid=True), dice),
    (MaskedLoss(DiceCELoss, sigmoid=True), DiceCELoss(sigmoid=True), dice + outside * log(2)),
    (MaskedLoss(FocalLoss), FocalLoss(), outside * 0.5**2 * log(2)),
):
    loss, gradient = loss_and_gradient(lambda logits, masked=masked: masked(logits, label, mask))
    true, true_gradient = loss_and_gradient(lambda logits, plain=plain: plain(logits[region], label[region]))
    names = type(masked).__name__, type(plain).__name__
    print(*names, f"{loss:.4f} ({true:.4f}) {gradient:.1e} ({true_gradient:.1e})")
    assert true < 1e-6 and abs(loss - expected) < 1e-4, "the behaviour has changed"
    assert isclose(gradient, true_gradient, rel_tol=1e-3) if expected == 0 else gradient < true_gradient / 6
END
