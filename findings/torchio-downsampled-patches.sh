#!/usr/bin/env bash
# TorchIO: a prediction at half of the resolution has gaps between the patches, and a lesion in a gap is lost.
#
# torchio 1.2.1, torch 2.13.0. GridAggregator(downsampling_factor=2) puts patches together that a network, for example
# one without its last upsampling, predicts at half of the resolution. Where patches overlap, the default mode "crop"
# removes half of the overlap from each of both. One expects the patches to meet, as they do at full resolution: the
# volume of an identity is the input. But the sizes and the places of the patches are divided by the factor, and what is
# cropped is not: too much is removed, and the gaps are 0, which is the background of most labels. There is no warning.
# With padding, the whole volume is also smaller than the input. The modes "average" and "hann" raise errors. Without
# overlap, all is right. That outputs can be smaller was asked for in torchio#1001; no thread about the gaps was found.
#
# Seen (volume of 96 x 96 x 32 ones, patches of 32, overlap 8; a lesion of 6 x 20 x 8 voxels whose centre is 28 voxels
# from the border; the identity and means of blocks as networks):
#   factor  padding   missing voxels  voxels of the lesion, in full resolution
#   1       no        0 %             960
#   2       no        31 %            0
#   4       no        89 %            0
#   2       constant  47 %, of 44 x 44 x 12 instead of 48 x 48 x 16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 torchio==1.2.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
import torchio


def predict(image, factor, overlap=8, padding=None):
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=image))
    sampler = torchio.GridSampler(subject, 32, overlap, padding_mode=padding)
    aggregator = torchio.GridAggregator(sampler, downsampling_factor=factor)
    for patch in sampler:
        prediction = torch.nn.functional.avg_pool3d(patch["image"].data[None], factor)
        aggregator.add_batch(prediction, patch[torchio.LOCATION][None])
    return aggregator.get_output_tensor()


ones, lesion = torch.ones(1, 96, 96, 32), torch.zeros(1, 96, 96, 32)
lesion[:, 25:31, 60:80, 12:20] = 1
expected = {1: (0, 960), 2: (0.31, 0), 4: (0.89, 0)}
for factor, result in expected.items():
    missing = (predict(ones, factor) == 0).float().mean().item()
    found = predict(lesion, factor).sum().item() * factor**3
    print("factor", factor, f"missing {missing:.2f}, voxels of the lesion", found)
    assert abs(missing - result[0]) < 0.01 and found == result[1], "the behaviour has changed"
    if factor > 1:
        assert (predict(ones, factor, overlap=0) == 1).all(), "the behaviour has changed"
assert (predict(ones, 1, padding=0) == 1).all(), "the behaviour has changed"
padded = predict(ones, 2, padding=0)
print("factor 2, padded", tuple(padded.shape), f"missing {(padded == 0).float().mean().item():.2f}")
assert padded.shape == (1, 44, 44, 12) and (padded == 0).float().mean() > 0.4, "the behaviour has changed"
END
