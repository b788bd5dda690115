"""Losses by name, compared with their formulas."""

from dataclasses import replace

import pytest
import torch
from monai.losses import DeepSupervisionLoss
from torch.nn import functional

from attn3d.segmentation.labels import Labels
from attn3d.segmentation.losses import create_loss
from attn3d.segmentation.settings import Settings, checked

LABELS = Labels.of({1: "a", 2: "b"})
LOSSES = ("dice_ce", "dice_focal", "generalized_dice", "tversky")


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randint(3, (2, 1, 4, 5, 6), generator=generator)


def parts(logits, classes):
    """Probabilities and one-hot labels of the foreground, (labels, voxels), with the batch as one volume."""
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)[1:]
    true = functional.one_hot(classes[:, 0], 3).movedim(-1, 0).flatten(1).double()[1:]
    return probabilities, true


def dice(logits, classes, weights=(1.0, 1.0)):
    found, true = parts(logits, classes)
    each = 1 - (2 * (found * true).sum(1) + 1e-5) / (found.sum(1) + true.sum(1) + 1e-5)
    return (torch.tensor(weights, dtype=torch.float64) * each).mean()


def test_dice_with_cross_entropy(batch):
    logits, classes = batch
    assert create_loss("dice_ce", LABELS)(logits, classes).item() == pytest.approx(
        (dice(logits, classes) + functional.cross_entropy(logits, classes[:, 0])).item(), rel=1e-5
    )


def test_weights_of_classes(batch):
    logits, classes = batch
    weights = torch.tensor([0.5, 1.0, 3.0])
    entropy = functional.cross_entropy(logits, classes[:, 0], weights.double())
    found = create_loss("dice_ce", LABELS, weights.tolist())(logits.float(), classes)
    assert found.item() == pytest.approx((dice(logits, classes, (1.0, 3.0)) + entropy).item(), rel=1e-5)


def test_tversky(batch):
    found, true = parts(*batch)
    both = (found * true).sum(1)
    index = (both + 1e-5) / (both + 0.3 * (found * (1 - true)).sum(1) + 0.7 * ((1 - found) * true).sum(1) + 1e-5)
    assert create_loss("tversky", LABELS)(*batch).item() == pytest.approx((1 - index).mean().item(), rel=1e-5)


def test_generalised_dice(batch):
    found, true = parts(*batch)
    weights = 1 / true.sum(1) ** 2
    both, sizes = weights @ (found * true).sum(1), weights @ (found.sum(1) + true.sum(1))
    expected = 1 - (2 * both + 1e-5) / (sizes + 1e-5)
    assert create_loss("generalized_dice", LABELS)(*batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_has_the_smallest_loss(name, batch):
    logits, classes = batch
    right = 60 * functional.one_hot(classes[:, 0], 3).movedim(-1, 1).double() - 30
    loss = create_loss(name, LABELS)
    assert loss(right, classes).item() == pytest.approx(0, abs=1e-4)
    assert loss(logits, classes).item() > 0.1


def test_errors_for_unknown_losses_and_for_weights():
    with pytest.raises(ValueError, match="`loss` must be 'dice_ce', 'dice_focal', 'generalized_dice' or 'tv"):
        checked(Settings, {"loss": "dice"})
    with pytest.raises(ValueError, match="`class_weights` are for the loss dice_ce, got the loss"):
        create_loss("tversky", LABELS, [1.0, 1.0])


REGIONS = Labels(("whole", "core"), ((1, 2), (2,)), (1, 2))


@pytest.mark.parametrize("regions", [REGIONS, Labels(("whole",), ((1, 2),), (1,))], ids=["two", "one"])
def test_losses_of_regions(regions, batch):
    """Formulas with the sigmoid of each region and the batch as one volume. MONAI's DiceCELoss would take the softmax
    of two channels."""
    count = len(regions.channels)
    logits, values = batch[0][:, :count], batch[1]
    masks = torch.stack([values[:, 0] > 0, values[:, 0] == 2], dim=1)[:, :count].double()
    found, true = (one.transpose(0, 1).flatten(1) for one in (logits.sigmoid(), masks))
    both, sizes = (found * true).sum(1), found.sum(1) + true.sum(1)
    overlap = (1 - (2 * both + 1e-5) / (sizes + 1e-5)).mean()
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    focal = ((1 - torch.where(masks > 0, logits.sigmoid(), 1 - logits.sigmoid())) ** 2) * (
        functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    )
    weights = 1 / true.sum(1) ** 2
    missed, false = (true * (1 - found)).sum(1), (found * (1 - true)).sum(1)
    expected = {
        "dice_ce": overlap + entropy,
        "dice_focal": overlap + focal.mean(),
        "generalized_dice": 1 - (2 * weights @ both + 1e-5) / (weights @ sizes + 1e-5),
        "tversky": 1 - ((both + 1e-5) / (both + 0.3 * false + 0.7 * missed + 1e-5)).mean(),
    }
    assert {*expected} == {*LOSSES}
    for name, value in expected.items():
        assert create_loss(name, regions)(logits, values).item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_voxels_have_no_effect_on_loss_and_gradient(name, labels, batch):
    """The loss equals that of a volume of the other voxels. Also at coarser resolutions, and if all are ignored."""
    logits, values = batch[0][:, : len(labels.channels)].clone().requires_grad_(), batch[1].to(torch.uint8)
    ignored = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    loss = create_loss(name, replace(labels, ignore=7))
    found = loss(logits, values.masked_fill(ignored, 7))
    found.backward()
    there = ignored.expand_as(logits)
    assert not logits.grad[there].any(), "ignored voxels must have a gradient of 0"
    assert logits.grad[~there].all()
    kept = ~ignored[:, 0]
    others = (
        logits.detach().movedim(1, -1)[kept].T[None, :, :, None, None],
        values[:, 0][kept][None, None, :, None, None],
    )
    assert found.item() == pytest.approx(create_loss(name, labels)(*others).item(), rel=1e-6)

    logits.grad = None
    nothing = loss(logits, torch.full_like(values, 7))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()

    coarse = torch.zeros(2, len(labels.channels), 2, 5, 3, requires_grad=True)
    DeepSupervisionLoss(loss)([logits, coarse], values.masked_fill(ignored, 7)).backward()
    seen = functional.interpolate(ignored.to(torch.uint8), (2, 5, 3), mode="nearest-exact") > 0
    assert not coarse.grad[seen.expand_as(coarse)].any()
    assert coarse.grad.any()


def test_weights_need_labels_and_not_regions():
    with pytest.raises(
        ValueError, match=r"`class_weights` are for labels that exclude each other, got .* regions 1\+2"
    ):
        create_loss("dice_ce", REGIONS, [1.0, 1.0])
    with pytest.raises(ValueError, match="`class_weights` must have 3 values, for the background and for a, b, got"):
        create_loss("dice_ce", LABELS, [1.0, 1.0])


def test_a_batch_of_classes_without_weight_has_no_cross_entropy():
    """PyTorch divides 0 by 0."""
    loss = create_loss("dice_ce", LABELS, [0.0, 1.0, 1.0])
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    background = torch.zeros(2, 1, 4, 5, 6, dtype=torch.long)
    found = loss(logits, background)
    found.backward()
    assert found.item() == pytest.approx(dice(logits.detach().double(), background).item(), rel=1e-5)
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
