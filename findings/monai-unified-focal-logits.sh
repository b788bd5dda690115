#!/usr/bin/env bash
# MONAI: AsymmetricUnifiedFocalLoss asks for logits and does not transform them; most have no gradient.
#
# monai 1.6.1, torch 2.13.0. By the docstring of AsymmetricUnifiedFocalLoss.forward, the input is to be logits, as "it
# will be transformed by a sigmoid". There is no sigmoid: one channel x becomes 1 - x and x, and both are clamped to
# values between 0 and 1. So all logits below 0 are the same, as are all logits above 1, right or wrong, and the
# gradient of each is 0: a network that is wrong never learns it. Applied to probabilities, that is, after a sigmoid by
# the user, the loss agrees with its formula. MONAI#8603, which is open, asks for arguments for a sigmoid and a softmax;
# it does not mention the docstring or the gradient.
#
# Seen (loss of half right and half wrong voxels, whose logits are plus or minus a size; largest gradient):
#   size  logits as documented  gradient  after a sigmoid  gradient
#   1.5   1.18                  0         0.40             5e-05
#   4     1.18                  0         0.52             4e-05
#   8     1.18                  0         0.74             4e-05
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.losses.unified_focal_loss import AsymmetricUnifiedFocalLoss

generator = torch.Generator().manual_seed(0)
target = (torch.rand(1, 1, 16, 16, 16, generator=generator) < 0.3).float()
right = torch.rand(target.shape, generator=generator) < 0.5
sign = torch.where(right, 2 * target - 1, 1 - 2 * target)
criterion = AsymmetricUnifiedFocalLoss()


def plain(probability, weight=0.5, delta=0.7, gamma=0.5):
    """The formula of the loss for probabilities of the foreground."""
    p, t = probability.flatten().double(), target.flatten().double()
    crossed = (1 - delta) * (1 - t) * p**gamma * -torch.log1p(-p), delta * t * -p.log()
    focal = torch.stack(crossed).mean()
    tversky = [
        (a * b).sum() / ((a * b).sum() + delta * (b * (1 - a)).sum() + (1 - delta) * ((1 - b) * a).sum())
        for a, b in ((1 - p, 1 - t), (p, t))
    ]
    overlap = (1 - tversky[0] + (1 - tversky[1]) ** (1 - gamma)) / 2
    return (weight * focal + (1 - weight) * overlap).item()


def loss_of(logits, transform):
    logits = logits.clone().requires_grad_()
    loss = criterion(transform(logits), target)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.item(), gradient.abs().max().item()


losses = []
for size in (1.5, 4, 8):
    logits = size * sign
    seen, after = loss_of(logits, lambda x: x), loss_of(logits, torch.sigmoid)
    true = plain(torch.sigmoid(logits))
    print(f"size {size}: logits {seen[0]:.4f} {seen[1]:.1g}, sigmoid {after[0]:.4f} {after[1]:.1g}, plain {true:.4f}")
    assert abs(after[0] - true) < 1e-3 and after[1] > 0
    assert seen[1] == 0, "the behaviour has changed"
    losses.append(seen[0])
assert max(losses) - min(losses) < 1e-6, "the behaviour has changed"
END
