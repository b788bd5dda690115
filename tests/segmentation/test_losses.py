"""The losses by name, against their formulas."""

import pytest
import torch
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
    """Probabilities and one-hot labels of the foreground, of the batch as one volume: (labels, voxels)."""
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
def test_every_loss_is_least_where_all_is_right(name, batch):
    logits, classes = batch
    right = 60 * functional.one_hot(classes[:, 0], 3).movedim(-1, 1).double() - 30
    loss = create_loss(name, LABELS)
    assert loss(right, classes).item() == pytest.approx(0, abs=1e-4)
    assert loss(logits, classes).item() > 0.1


def test_what_is_no_loss_or_takes_no_weights():
    with pytest.raises(ValueError, match="`loss` must be dice_ce, dice_focal, generalized_dice or tv"):
        checked(Settings, {"loss": "dice"})
    with pytest.raises(ValueError, match="`class_weights` are for the loss dice_ce, got the loss"):
        create_loss("tversky", LABELS, [1.0, 1.0])
