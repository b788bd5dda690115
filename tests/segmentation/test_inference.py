"""From a trained network and a scan of any geometry to probabilities and labels on the scan's own voxels."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from torch import nn

from attn3d.segmentation.grid import label_to_grid, to_grid
from attn3d.segmentation.inference import View, probability_planes, segment
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.portable import normalise, window_size
from tests.segmentation.volumes import AFFINES, head, scan

LABELS = Labels.of({1: "outer", 2: "middle", 3: "inner"})
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


def view(network, image, patch=PATCH):
    volume = to_grid(image, SPACING)
    return View(network, MetaTensor(normalise(volume.as_tensor()), affine=volume.affine), patch, LABELS)


@pytest.mark.parametrize("name", ["oblique", "LAS, 5 mm slices"])
def test_a_trained_network_finds_what_it_learnt_in_a_scan_of_another_geometry(trained, name):
    image, label = pair(name, seed=5)
    (found, _), true = segment([view(trained, image)], image), np.asarray(label.dataobj)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert 2 * ((found == 3) & (true == 3)).sum() / ((found == 3).sum() + (true == 3).sum()) > 0.8


def test_probabilities_sum_to_one_in_the_scans_own_grid(trained):
    image, _ = pair("sheared")
    classes, probabilities = segment([view(trained, image)], image, keep=True)
    assert probabilities.shape == (*image.shape, 4)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), classes)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("patch", [(16, 16, 16), (20, 12, 8), (24, 32, 16)], ids=str)
def test_windows_are_averaged_as_by_monai(trained, axis, overlap, patch):
    """Plane by plane; also where the volume is smaller than a window."""
    volume = torch.randn(1, 21, 26, 18, generator=torch.Generator().manual_seed(0))
    planes = probability_planes(View(trained, MetaTensor(volume), patch, LABELS), axis, overlap=overlap)
    found = torch.stack(list(planes), dim=1 + axis)
    with torch.no_grad():
        logits = sliding_window_inference(
            volume[None], patch, 2, trained, overlap=overlap, mode="gaussian", padding_mode="replicate"
        )
    torch.testing.assert_close(found, logits[0].softmax(dim=0), atol=2e-3, rtol=0)


def test_mirrored_windows_make_a_network_blind_to_sides(trained):
    volume = torch.randn(1, 24, 20, 18, generator=torch.Generator().manual_seed(0))
    plain, mirrored = (View(trained, MetaTensor(one), PATCH, LABELS) for one in (volume, volume.flip(1)))
    found = torch.stack([*probability_planes(plain, 2, mirrored=True)], dim=3)
    other = torch.stack([*probability_planes(mirrored, 2, mirrored=True)], dim=3)
    torch.testing.assert_close(found, other.flip(1), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((35, 51, 35), (40, 56, 40)),
        ((43, 59, 47), (48, 64, 48)),
        ((30, 100, 30), (40, 104, 40)),
        ((80, 80, 80), (40, 56, 40)),
    ],
    ids=str,
)
def test_a_scan_of_at_most_two_patches_is_one_window(shape, window):
    assert window_size((40, 56, 40), (8, 8, 8), shape) == window
