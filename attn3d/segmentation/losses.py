"""The losses for training, by name."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss, DiceFocalLoss, GeneralizedDiceLoss, TverskyLoss
from torch.nn.modules.loss import _Loss


def create_loss(name: str, weights: Sequence[float] | None = None) -> _Loss:
    """A loss of logits (B, classes, *S) and class indices (B, 1, *S), by MONAI.

    All losses pool the voxels of a batch. Otherwise a single false voxel of a label that a patch lacks would cost 1.

    - ``dice_ce``: Dice loss, without the background, and cross-entropy.
    - ``dice_focal``: Dice loss, and focal loss with exponent 2 (Lin et al., arXiv 1708.02002) of the sigmoid of each
      label, both without the background.
    - ``generalized_dice``: classes weighted by their inverse squared volume (Sudre et al., arXiv 1707.03237). A batch
      without any label has no gradient, so false positives in it cost nothing.
    - ``tversky``: false positives weighted 0.3 and false negatives 0.7 (Salehi et al., arXiv 1706.05721).

    Args:
        name: of the loss.
        weights: of each class, the background first; for ``dice_ce``.

    Raises:
        ValueError: when the loss takes no weights.
    """
    options: dict[str, Any] = {"to_onehot_y": True, "softmax": True, "include_background": False, "batch": True}
    if name == "dice_ce":
        return DiceCELoss(**options, weight=None if weights is None else torch.tensor(weights, dtype=torch.float32))
    if weights is not None:
        raise ValueError(f"`class_weights` are for the loss dice_ce, got the loss {name!r}")
    if name == "dice_focal":
        return DiceFocalLoss(**options, gamma=2.0)
    if name == "generalized_dice":
        return GeneralizedDiceLoss(**options)
    return TverskyLoss(**options, alpha=0.3, beta=0.7)
