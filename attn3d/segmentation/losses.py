"""The losses for training, by name."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss, DiceFocalLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from attn3d.arguments import one_of
from attn3d.segmentation.labels import Labels


class LabelLoss(_Loss):
    """A loss of logits (B, channels, *S) and label values (B, 1, *S).

    Ignored voxels are left out and have no gradient. If all voxels of a batch are ignored, the loss is 0.

    Args:
        loss: a loss of logits and `Labels.targets` that pools the voxels of a batch.
        labels: the meaning of the values.
    """

    def __init__(self, loss: nn.Module, labels: Labels):
        super().__init__()
        self.loss, self.labels = loss, labels

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch."""
        if self.labels.ignore is not None:
            kept = label[:, 0] != self.labels.ignore
            if not kept.any():
                return (logits * 0).sum()
            logits, label = logits.movedim(1, -1)[kept].T[None], label[:, 0][kept][None, None]
        return self.loss(logits, self.labels.targets(label))


class _WeightedCrossEntropy(nn.CrossEntropyLoss):
    """Weighted cross-entropy, which is 0 for voxels that all have the weight 0. PyTorch's is 0 / 0."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted mean over the voxels of class numbers (B, *S)."""
        weight: Any = self.weight
        total = functional.cross_entropy(logits, target, weight, reduction="sum")
        return total / weight[target].sum().clamp(min=torch.finfo(torch.float32).tiny)


def create_loss(name: str, labels: Labels, weights: Sequence[float] | None = None) -> LabelLoss:
    """Creates a loss from those of MONAI. Its inputs are logits (B, channels, *S) and label values (B, 1, *S).

    All losses pool the voxels of a batch. Otherwise, one false voxel in a patch without the label would cost 1. Labels
    go through a softmax, and some losses leave out the background. Each region goes through a sigmoid.

    - ``dice_ce``: Dice loss, without the background, and cross-entropy; for regions, binary cross-entropy.
    - ``dice_focal``: Dice loss, and focal loss with exponent 2 (Lin et al., arXiv 1708.02002) of the sigmoid of each
      label, both without the background.
    - ``generalized_dice``: labels weighted by their inverse squared volume (Sudre et al., arXiv 1707.03237). A batch
      without any label has no gradient, so false positives in it cost nothing.
    - ``tversky``: false positives weighted 0.3 and false negatives 0.7 (Salehi et al., arXiv 1706.05721). A batch
      without a label has nearly no gradient for it, so false positives in it cost little.

    Args:
        name: the name of the loss.
        labels: the meaning of the values.
        weights: weights of the background and of each label, for ``dice_ce`` without regions.

    Raises:
        ValueError: when the name is unknown, the loss does not take weights, or needs another number of them.
    """
    one_of("loss", name, ("dice_ce", "dice_focal", "generalized_dice", "tversky"))
    if weights is not None and name != "dice_ce":
        raise ValueError(f"`class_weights` are for the loss dice_ce, got the loss {name!r}")
    if weights is not None and labels.regions:
        raise ValueError(f"`class_weights` are for labels that exclude each other, got {weights} for {labels}")
    if weights is not None and len(weights) != len(labels.channels):
        raise ValueError(
            f"`class_weights` must have {len(labels.channels)} values, for the background and for "
            f"{', '.join(labels.names)}, got {weights}"
        )
    options: dict[str, Any] = {"to_onehot_y": True, "softmax": True, "include_background": False, "batch": True}
    if labels.regions:
        options = {"sigmoid": True, "batch": True}
    if name == "dice_ce":
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        loss = DiceCELoss(**options, weight=weight)
        if labels.regions:
            loss.cross_entropy = nn.BCEWithLogitsLoss()  # type: ignore[assignment]  # MONAI's has a softmax
        elif weight is not None:
            loss.cross_entropy = _WeightedCrossEntropy(weight)
        return LabelLoss(loss, labels)
    if name == "dice_focal":
        return LabelLoss(DiceFocalLoss(**options, gamma=2.0), labels)
    if name == "generalized_dice":
        return LabelLoss(GeneralizedDiceLoss(**options), labels)
    return LabelLoss(TverskyLoss(**options, alpha=0.3, beta=0.7), labels)
