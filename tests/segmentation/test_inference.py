"""Probabilities and labels on the grid of the scan, from a trained network and a scan of any geometry."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from torch import nn

from attn3d.segmentation import inference
from attn3d.segmentation.grid import label_to_grid, to_grid
from attn3d.segmentation.inference import NetworkInput, probability_planes, segment
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.portable import normalise, window_size
from tests.memory import peak
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


class Sharper(nn.Module):
    """Multiplies the logits, which makes probabilities sharper."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return x * self.power


def network_input(network, image, patch=PATCH):
    volume = to_grid(image, SPACING)
    return NetworkInput(network, MetaTensor(normalise(volume.as_tensor()), affine=volume.affine), patch, LABELS)


@pytest.mark.parametrize("name", ["oblique", "LAS, 5 mm slices"])
def test_a_trained_network_segments_a_scan_of_another_geometry(trained, name):
    image, label = pair(name, seed=5)
    found, true = segment([network_input(trained, image)], image).labels, np.asarray(label.dataobj)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert 2 * ((found == 3) & (true == 3)).sum() / ((found == 3).sum() + (true == 3).sum()) > 0.8


def test_probabilities_sum_to_one_in_the_scans_own_grid(trained):
    image, _ = pair("sheared")
    classes, probabilities, _ = segment([network_input(trained, image)], image, keep=True)
    assert probabilities.shape == (*image.shape, 4)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), classes)


@pytest.mark.parametrize("count", [1, 3])
def test_uncertainty_is_entropy_and_the_spread_of_networks(trained, count):
    """Compared with the formulas, from the probabilities of each network, some of which are exactly 0 or 1."""
    image, _ = pair("oblique")
    inputs = [network_input(nn.Sequential(trained, Sharper(power)), image) for power in (1.0, 0.1, 30.0)[:count]]
    each = [segment([one], image, keep=True).probabilities.astype(float) for one in inputs]
    found = segment(inputs, image, uncertainty=True)
    assert found.probabilities is None
    mean = sum(each) / count
    terms = [one * np.log(one, where=one > 0, out=np.zeros_like(one)) for one in np.moveaxis(mean, -1, 0)]
    np.testing.assert_allclose(found.uncertainty["entropy"], -sum(terms), atol=1e-5)
    assert [*found.uncertainty] == ["entropy", "spread"][:count]
    if count > 1:
        given = [np.take_along_axis(one, found.labels[..., None].astype(int), -1)[..., 0] for one in each]
        plain = np.sqrt(sum((one - sum(given) / count) ** 2 for one in given) / count)
        np.testing.assert_allclose(found.uncertainty["spread"], plain, atol=1e-6)
        assert plain.max() > 0.2
    assert all(values.dtype == np.float32 for values in found.uncertainty.values())


@pytest.mark.parametrize(("power", "expected"), [(0.0, np.log(4)), (1e6, 0.0)], ids=["even", "sure"])
def test_entropy_is_between_zero_and_the_logarithm_of_the_classes(trained, power, expected):
    image, _ = pair("RAS")
    found = segment([network_input(nn.Sequential(trained, Sharper(power)), image)], image, uncertainty=True)
    entropy = found.uncertainty["entropy"]
    assert entropy.min() >= 0
    assert entropy.max() <= np.float32(np.log(4))
    np.testing.assert_allclose(np.median(entropy), expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("patch", [(16, 16, 16), (20, 12, 8), (24, 32, 16)], ids=str)
def test_windows_are_averaged_as_by_monai(trained, axis, overlap, patch):
    """Plane by plane, and also if the volume is smaller than a window."""
    volume = torch.randn(1, 21, 26, 18, generator=torch.Generator().manual_seed(0))
    planes = probability_planes(NetworkInput(trained, MetaTensor(volume), patch, LABELS), axis, overlap=overlap)
    found = torch.stack(list(planes), dim=1 + axis)
    with torch.no_grad():
        logits = sliding_window_inference(
            volume[None], patch, 2, trained, overlap=overlap, mode="gaussian", padding_mode="replicate"
        )
    torch.testing.assert_close(found, logits[0].softmax(dim=0), atol=2e-3, rtol=0)


def test_windows_in_one_batch_give_the_same(trained, monkeypatch):
    """Also with a last batch that is smaller."""
    volume, sizes = torch.randn(1, 16, 16, 48, generator=torch.Generator().manual_seed(0)), []
    trained_input = NetworkInput(trained, MetaTensor(volume), PATCH, LABELS)

    def probabilities(together):
        monkeypatch.setattr(inference, "_ON_A_CPU", together)
        with trained.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]))):
            return torch.stack([*probability_planes(trained_input, 0, overlap=0.75, mirror=[2])], dim=1)

    alone = probabilities(1)
    assert sizes == [1] * 18, "9 windows and their mirror images"
    for together, expected in ((2, [2] * 8 + [1] * 2), (4, [4] * 4 + [1] * 2)):
        sizes.clear()
        torch.testing.assert_close(probabilities(together), alone, atol=1e-5, rtol=0)
        assert sizes == expected


@pytest.mark.parametrize("mirror", [(0,), (2, 0), (0, 1, 2)], ids=str)
def test_mirrored_windows_are_averaged_over_all_combinations(trained, mirror):
    """In one window: flip, run, flip back, and average the logits."""
    volume = torch.randn(1, *PATCH, generator=torch.Generator().manual_seed(0))
    runs = []
    for flipped in product((False, True), repeat=len(mirror)):
        axes = [axis for axis, one in zip(mirror, flipped, strict=True) if one]
        with torch.no_grad():
            runs.append(trained(volume.flip([1 + axis for axis in axes])[None])[0].flip([1 + axis for axis in axes]))
    plain = torch.stack(runs).mean(dim=0).softmax(dim=0)
    seen = NetworkInput(trained, MetaTensor(volume), PATCH, LABELS)
    found = torch.stack([*probability_planes(seen, 2, mirror=mirror)], dim=3)
    torch.testing.assert_close(found, plain, atol=2e-3, rtol=0)
    unmirrored = torch.stack([*probability_planes(seen, 2)], dim=3)
    assert (found - unmirrored).abs().max() > 0.05


def test_with_mirrored_windows_a_mirrored_scan_gives_mirrored_probabilities(trained):
    volume = torch.randn(1, 24, 20, 18, generator=torch.Generator().manual_seed(0))
    plain, mirrored = (NetworkInput(trained, MetaTensor(one), PATCH, LABELS) for one in (volume, volume.flip(1, 3)))
    found = torch.stack([*probability_planes(plain, 1, mirror=[0, 2])], dim=2)
    other = torch.stack([*probability_planes(mirrored, 1, mirror=[0, 2])], dim=2)
    torch.testing.assert_close(found, other.flip(1, 3), atol=2e-3, rtol=0)


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


REGIONS = Labels(("a", "b", "c", "d"), ((1, 2, 3, 4), (2, 3, 4), (3, 4), (4,)), (1, 2, 3, 4))


def test_regions_are_predicted_independently(trained):
    """With sliding windows, on the grid of the scan, with the uncertainty of two networks."""
    image, _ = pair("oblique")
    networks = [trained, nn.Sequential(trained, Sharper(0.5)).eval()]
    inputs = [network_input(network, image)._replace(labels=REGIONS) for network in networks]
    alone = [segment([one], image, keep=True) for one in inputs]
    with torch.no_grad():
        logits = sliding_window_inference(
            inputs[0].volume[None], PATCH, 2, trained, overlap=0.5, mode="gaussian", padding_mode="replicate"
        )
    planes = torch.stack([*probability_planes(inputs[0], 0)], dim=1)
    torch.testing.assert_close(planes, torch.as_tensor(logits[0]).sigmoid(), atol=2e-3, rtol=0)

    found = segment(inputs, image, keep=True, uncertainty=True)
    parts = np.stack([one.probabilities for one in alone])
    np.testing.assert_allclose(found.probabilities, parts.mean(axis=0), atol=1e-6)
    written = np.zeros(image.shape, np.uint8)
    for region in range(4):
        written[found.probabilities[..., region] > 0.5] = region + 1
    np.testing.assert_array_equal(found.labels, written)
    mean = found.probabilities.astype(float).clip(1e-30, 1 - 1e-16)
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).sum(axis=-1)
    np.testing.assert_allclose(found.uncertainty["entropy"], entropy, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty["spread"], parts.std(axis=0).max(axis=-1), atol=1e-6)
    assert found.uncertainty["spread"].max() > 0.05


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_found(value, labels):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            logits = torch.zeros(len(x), 4, *x.shape[2:]) + self.nothing
            logits[:, :, 3] = value
            return logits

    with pytest.raises(ValueError, match="not finite"):
        list(probability_planes(NetworkInput(Broken(), MetaTensor(torch.zeros(1, *PATCH)), PATCH, labels), 2))


def test_many_classes_need_the_sums_and_one_output_of_the_network():
    """A copy of the whole output, in the range of float16 or rounded to it, would exceed the bound."""

    class ManyClasses(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = nn.Parameter(torch.randn(32, 1, 1, 1))

        def forward(self, x):
            return x * self.factors

    patch, labels = (64, 16, 16), Labels.of({value: f"label {value}" for value in range(1, 32)})
    one = NetworkInput(ManyClasses(), MetaTensor(torch.randn(1, 96, 16, 16)), patch, labels)
    values = 32 * math.prod(patch)
    assert peak(lambda: [None for _ in probability_planes(one, 0)]) < 1.25 * values * (2 + 4)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_sums_over_many_windows_are_not_rounded(labels):
    """Hundreds of windows cover each voxel; sums of float16 would be wrong by several per cent."""
    generator = torch.Generator().manual_seed(0)
    volume, network = torch.randn(1, 16, 16, 16, generator=generator), nn.Conv3d(1, 4, 1, bias=False)
    nn.init.uniform_(network.weight, -10, 10, generator)
    planes = list(probability_planes(NetworkInput(network, MetaTensor(volume), (8, 8, 8), labels), 0, overlap=0.9))
    with torch.no_grad():
        expected = labels.probabilities(network(volume[None])[0])
    torch.testing.assert_close(torch.stack(planes, dim=1), expected, atol=1e-5, rtol=0)
