import numpy as np
import pytest
import torch
from torch import nn

from attn3d.segmentation import (
    SegmentationTask,
    create_network,
    fit,
    patch_loader,
    predict_probabilities,
    segment,
    training_subject,
)
from tests.segmentation.volumes import AFFINES, head, scan

PATCH, SPACING = (16, 16, 16), (4.0, 4.0, 4.0)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 4, 3, padding=1))


def pair(name, seed=0):
    image, labels = head(AFFINES[name], seed=seed)
    return scan(image, AFFINES[name]), scan(labels, AFFINES[name])


def patches():
    torch.manual_seed(1)
    subject = training_subject(*pair("RAS"), spacing=SPACING, patch_size=PATCH)
    return patch_loader([subject], PATCH, batch_size=2, patches_per_scan=8)


def dice(found, true):
    return 2 * ((found == 3) & (true == 3)).sum() / ((found == 3).sum() + (true == 3).sum())


@pytest.mark.parametrize("name", ["oblique", "LAS, 5 mm slices"])
def test_a_trained_network_finds_what_it_learnt_in_a_scan_of_another_geometry(trained, name):
    image, label = pair(name, seed=5)
    found = segment(trained, image, SPACING, PATCH)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert dice(found, np.asarray(label.dataobj)) > 0.8


@pytest.fixture(scope="module")
def trained():
    network = small_network()
    assert fit(network, patches(), iterations=120) == 120
    return network


def test_probabilities_sum_to_one_in_the_scans_own_grid(trained):
    image, _ = pair("sheared")
    probabilities = predict_probabilities(trained, image, SPACING, PATCH)
    assert probabilities.shape == (4, *image.shape)
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(image.shape))


def test_the_same_seed_gives_the_same_weights():
    first, second = small_network(), small_network()
    fit(first, patches(), iterations=6)
    fit(second, patches(), iterations=6)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_seconds_limit_the_training_and_lower_the_learning_rate(monkeypatch):
    rates = []
    step = SegmentationTask.training_step

    def record(self, batch, index):
        rates.append(self.optimizers().param_groups[0]["lr"])
        return step(self, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", record)
    steps = fit(small_network(), patches(), seconds=1.0)
    assert steps == len(rates) > 1
    assert rates[0] == pytest.approx(6e-3, rel=0.2)
    assert rates[-1] < 0.5 * rates[0]
    assert rates == sorted(rates, reverse=True)


def test_a_limit_is_needed():
    with pytest.raises(ValueError, match="`iterations` or `seconds`"):
        fit(small_network(), patches())


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="BasicUNet"):
        create_network("BasicUnet3D", 1, 4)


@pytest.mark.parametrize("name", ["UNet", "ResidualUNet", "BasicUNet", "SegResNet"])
def test_each_network_maps_a_patch_to_classes(name):
    network = create_network(name, in_channels=1, out_channels=4).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 4, 32, 32, 32)
