#!/usr/bin/env bash
# MONAI: exchanging the channels of a generated scan, as of T1 and T2, costs nothing in JukeboxLoss.
#
# monai 1.6.1, torch 2.13.0. JukeboxLoss(spatial_dims=3) compares the magnitudes of the Fourier transforms of two scans;
# it is one of the losses of generative networks. One expects a transform along the three axes of the volume, for each
# channel. But it is also along the channels (fft_dim is 1, 2, 3, 4), and magnitudes do not change if channels move in a
# circle. So a generator that exchanges the two channels, or moves three of them on by one, has a loss of 0, and for one
# channel that is wrong, it depends on the others how much that costs. A loss for each channel alone is right. (That a
# shift along a spatial axis costs nothing is in the nature of the loss.) No thread about it was found.
#
# Seen (loss of two or three independent channels of 16 x 16 x 16 voxels):
#   prediction              all channels at once  the mean of one channel at a time (true)
#   the target              0                     0
#   two channels exchanged  0                     0.0383
#   three channels moved    0                     0.0355
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import torch
from monai.losses import JukeboxLoss

generator = torch.Generator().manual_seed(0)
loss = JukeboxLoss(spatial_dims=3)


def plain(prediction, target):
    """The same loss by NumPy, with a Fourier transform along the spatial axes only."""
    one, other = (
        np.abs(np.fft.fftn(x.double().numpy(), axes=(2, 3, 4), norm="ortho")) for x in (prediction, target)
    )
    return np.mean((one - other) ** 2)


for channels in (2, 3):
    target = torch.rand(1, channels, 16, 16, 16, generator=generator)
    for name, prediction in (("target", target), ("moved", target.roll(1, dims=1))):
        seen = loss(prediction, target).item()
        alone = np.mean([loss(prediction[:, [i]], target[:, [i]]).item() for i in range(channels)])
        true = plain(prediction, target)
        print(channels, "channels,", name, f"seen {seen:.4f}, one at a time {alone:.4f}, true {true:.4f}")
        assert abs(alone - true) < 1e-5
        assert seen < 1e-8, "the behaviour has changed"
        assert (true > 0.03) == (name == "moved")
END
