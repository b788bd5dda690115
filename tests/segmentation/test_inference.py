"""From a trained network and a scan of any geometry to probabilities and labels on the scan's own voxels."""

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn

from attn3d.segmentation import predict_probabilities, segment
from attn3d.segmentation.grid import label_to_grid, to_grid
from attn3d.segmentation.preprocessing import normalise
from tests.segmentation.volumes import AFFINES, head, scan

PATCH, SPACING = (16, 16, 16), (4.0, 4.0, 4.0)


def pair(name, seed=0):
    image, labels = head(AFFINES[name], seed=seed)
    return scan(image, AFFINES[name]), scan(labels, AFFINES[name])


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 4, 3, padding=1))
    image, label = pair("RAS")
    image = normalise(to_grid(image, SPACING).as_tensor())[None]
    label = label_to_grid(label, SPACING).as_tensor()[None]
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("name", ["oblique", "LAS, 5 mm slices"])
def test_a_trained_network_finds_what_it_learnt_in_a_scan_of_another_geometry(trained, name):
    image, label = pair(name, seed=5)
    found, true = segment(trained, image, SPACING, PATCH), np.asarray(label.dataobj)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert 2 * ((found == 3) & (true == 3)).sum() / ((found == 3).sum() + (true == 3).sum()) > 0.8


def test_probabilities_sum_to_one_in_the_scans_own_grid(trained):
    image, _ = pair("sheared")
    probabilities = predict_probabilities(trained, image, SPACING, PATCH)
    assert probabilities.shape == (4, *image.shape)
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(image.shape))
