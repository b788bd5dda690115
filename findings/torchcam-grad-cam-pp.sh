#!/usr/bin/env bash
# TorchCAM: in the Grad-CAM++ map of two lesions, the second one has 4 % of the first one instead of 34 %.
#
# torchcam 0.5.0, torch 2.13.0. GradCAMpp is documented with the formula of Grad-CAM++: the weight of a feature is the
# sum of its positive gradients, each times a coefficient, which is the square of the gradient divided by twice the
# square plus the cube times the sum of the feature. But the squares are not divided: alpha[mask].div_(...) divides a
# copy. The weights are the cubes of the gradients, and an eps that is given has no effect. A feature with a third of
# the gradient of another one has a 27th of its weight instead of about a third, so that lesions that contribute less to
# a logit disappear, which Grad-CAM++ is made to avoid. The code for slices is the same. SmoothGradCAMpp divides. No
# thread about it was found.
#
# Seen (two lesions of 64 voxels in a scan of 4096, each seen by a feature of its own; the logit is three times the mean
# of the first plus the mean of the second; the map at the second lesion, at the first one it is 1):
#   GradCAM  GradCAMpp  Grad-CAM++ by its formula  undivided
#   0.333    0.037      0.338                      0.037
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 torchcam==0.5.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import torch
from torch import nn
from torchcam.methods import GradCAM, GradCAMpp


class Network(nn.Module):
    """Two features, the scan and its negative, both above 0; the logit is 3 times the first mean plus the second."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.ReLU())
        self.head = nn.Linear(2, 1, bias=False)
        self.features[0].weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1, 1)
        self.head.weight.data = torch.tensor([[3.0, 1.0]])

    def forward(self, scan):
        return self.head(self.features(scan).mean((2, 3, 4)))


network = Network().eval()
scan = torch.zeros(1, 1, 16, 16, 16)
scan[..., 2:6, 2:6, 2:6], scan[..., 9:13, 9:13, 9:13] = 1, -1


def second(heat):
    """Return the map at the second lesion, relative to the first one."""
    return (heat[10, 10, 10] / heat[3, 3, 3]).item()


seen = {}
for method in GradCAM, GradCAMpp:
    with method(network, "features") as extractor:
        seen[method.__name__] = second(extractor(0, network(scan), normalized=False)[0][0])

features = network.features(scan).detach().requires_grad_()
(gradient,) = torch.autograd.grad(network.head(features.mean((2, 3, 4))).sum(), features)
square, cube = gradient**2, gradient**3
divisor = 2 * square + (cube * features).sum((2, 3, 4), keepdim=True)
for name, coefficient in (("formula", square / divisor), ("undivided", square)):
    weight = (coefficient * gradient.relu()).sum((2, 3, 4), keepdim=True)
    seen[name] = second((weight * features).sum(1)[0])
print("torchcam", version("torchcam"), "torch", torch.__version__, seen)
assert abs(seen["formula"] - 0.338) < 1e-3 and abs(seen["undivided"] - 1 / 27) < 1e-5
assert abs(seen["GradCAM"] - 1 / 3) < 1e-5 and abs(seen["GradCAMpp"] - 1 / 27) < 1e-5, "the behaviour has changed"
END
