#!/usr/bin/env bash
# nnU-Net, MONAI: with an ignored label, the cross-entropy or focal loss is multiplied by the number of classes.
#
# nnunetv2 2.8.1, monai 1.6.1, torch 2.13.0. One expects that voxels with an ignored label do not count, and that the
# rest is as without the option. Both losses are means over voxels and classes. With the option, the sum over voxels
# and classes is divided by the number of voxels that are not ignored: the mask has one channel, and the classes are
# forgotten. This is so even if nothing is ignored. A learning rate and the weight of the Dice loss that were right
# before are not any more: with nnU-Net and regions, as for brain tumours, cross-entropy and Dice are added, and the
# cross-entropy counts threefold as soon as dataset.json has an ignored label. The documentation of both does not
# mention it. nnU-Net without regions (DC_and_CE_loss) is right, as are MONAI's DiceLoss and TverskyLoss. No issue
# about it was found.
#
# Seen (random logits; loss with the option, divided by that of the labelled voxels without it):
#                                              classes  half ignored  none ignored
#   nnU-Net, DC_and_BCE_loss, cross-entropy    3        3             3
#   nnU-Net, DC_and_BCE_loss, Dice             3        1             1
#   nnU-Net, DC_and_CE_loss                    4        1             1
#   MONAI, FocalLoss, sigmoid                  4        4             4
#   MONAI, FocalLoss, softmax                  4        4             4
#   MONAI, DiceLoss                            4        1             1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
"$folder/venv/bin/pip" install -q --no-deps nnunetv2==2.8.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.losses import DiceLoss, FocalLoss
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss

torch.manual_seed(0)
ignored = 255
half = (..., slice(8), slice(None), slice(None))
logits, label = torch.randn(2, 4, 16, 16, 16), torch.randint(4, (2, 1, 16, 16, 16))
masked = label.clone()
masked[..., 8:, :, :] = ignored


def nnunet_regions(x, y, option):
    """The regions are label > 0, > 1 and > 2; the last channel is 1 where the label is ignored."""
    channels = [(y > region) & (y != ignored) for region in range(3)] + [y == ignored] * option
    return x[:, :3], torch.cat(channels, 1).float()


def cross_entropy(x, y, option):
    loss = DC_and_BCE_loss({}, {"ddp": False}, weight_dice=0, use_ignore_label=option)
    return loss(*nnunet_regions(x, y, option))


def dice(x, y, option):
    loss = DC_and_BCE_loss({}, {"ddp": False}, weight_ce=0, use_ignore_label=option)
    return loss(*nnunet_regions(x, y, option))


def labels(x, y, option):
    return DC_and_CE_loss({"ddp": False}, {}, ignore_label=ignored if option else None)(x, y)


def monai(loss, **options):
    return lambda x, y, option: loss(to_onehot_y=True, ignore_index=ignored if option else None, **options)(x, y)


for name, loss, factor in (
    ("nnU-Net, regions, cross-entropy", cross_entropy, 3),
    ("nnU-Net, regions, Dice", dice, 1),
    ("nnU-Net, labels, Dice and cross-entropy", labels, 1),
    ("MONAI, FocalLoss", monai(FocalLoss), 4),
    ("MONAI, FocalLoss, softmax", monai(FocalLoss, use_softmax=True), 4),
    ("MONAI, DiceLoss", monai(DiceLoss, softmax=True), 1),
):
    part = loss(logits, masked, True) / loss(logits[half], label[half], False)
    whole = loss(logits, label, True) / loss(logits, label, False)
    print(f"{name}: half ignored {part.item():.4f}, none ignored {whole.item():.4f}")
    assert abs(part - factor) < 1e-3 and abs(whole - factor) < 1e-3, "the behaviour has changed"
plain = torch.nn.functional.binary_cross_entropy_with_logits(*(z[half] for z in nnunet_regions(logits, label, False)))
assert torch.isclose(cross_entropy(logits, masked, True), 3 * plain), "the behaviour has changed"
END
