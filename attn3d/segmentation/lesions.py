"""Matches lesions of a prediction one to one with those of a reference, and scores them by panoptic quality."""

from collections.abc import Collection, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage, sparse

from attn3d.segmentation.components import components
from attn3d.segmentation.grid import voxel_millilitres

QUALITIES = ("panoptic_quality", "recognition_quality", "segmentation_quality", "lesion_dice")
COUNTS = ("lesions_predicted", "lesions_matched")
ROW = ("of", "lesion", "volume_ml", "x_mm", "y_mm", "z_mm", "matched", "dice")
_MATCHED = 0.5  # lesions match above this IoU; above 0.5, a lesion cannot have two matches


def match_lesions(
    found: np.ndarray, true: np.ndarray, affine: np.ndarray
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """Matches the lesions of a prediction with those of its reference, and scores them.

    A lesion is a connected component (26 neighbours). Two lesions match if their IoU is above 0.5; a lesion has at most
    one match. With TP matched pairs, FP unmatched lesions of the prediction and FN unmatched lesions of the reference:

    - ``lesions_predicted``: TP + FP; ``lesions_matched``: TP.
    - ``recognition_quality``: RQ = TP / (TP + FP/2 + FN/2), the F1 score of finding lesions.
    - ``segmentation_quality``: SQ, the mean IoU of the pairs; ``lesion_dice``: their mean Dice.
    - ``panoptic_quality``: SQ RQ (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

    If neither mask has a lesion, RQ and PQ are 1. If no lesions match, SQ and ``lesion_dice`` are None and PQ is 0.

    Args:
        found: mask of the prediction, (X, Y, Z); voxels above 0 belong to lesions.
        true: mask of the reference.
        affine: voxel indices to millimetres.

    Returns:
        The scores, and a row for each lesion of the reference and for each unmatched lesion of the prediction:
        ``of`` (reference, prediction), ``lesion`` (its number there), ``volume_ml``, its centre of mass ``x_mm``,
        ``y_mm``, ``z_mm``, ``matched`` and ``dice`` with its match.
    """
    found, true = found > 0, true > 0
    (box,) = ndimage.find_objects(found | true, max_label=1)
    box = box or (slice(0),) * found.ndim
    affine = affine @ nib.affines.from_matvec(np.eye(3), [side.start or 0 for side in box])
    (found_pieces, found_sizes), (true_pieces, true_sizes) = components(found[box]), components(true[box])
    found_count, true_count = int(found_pieces.max(initial=0)), int(true_pieces.max(initial=0))

    both = (found_pieces > 0) & (true_pieces > 0)
    pairs = (true_pieces[both], found_pieces[both])
    shared = sparse.coo_array((np.ones(len(pairs[0]), int), pairs), shape=(true_count + 1, found_count + 1))
    shared.sum_duplicates()
    lesions, matches = shared.coords
    together = true_sizes[lesions] + found_sizes[matches]
    iou, dice = shared.data / (together - shared.data), 2 * shared.data / together
    chosen = iou > _MATCHED
    dice_of = dict(zip(lesions[chosen].tolist(), dice[chosen].tolist(), strict=True))
    used = set(matches[chosen].tolist())

    scores = _scores(len(used), true_count, found_count, float(iou[chosen].sum()), float(dice[chosen].sum()))
    rows = _rows("reference", true_pieces, true_sizes, [*range(1, true_count + 1)], affine, dice_of)
    unmatched = [number for number in range(1, found_count + 1) if number not in used]
    return scores, rows + _rows("prediction", found_pieces, found_sizes, unmatched, affine, {})


def pooled(cases: Collection[Mapping[str, Any]]) -> dict[str, float | None]:
    """The counts of a cohort, and the qualities over all its lesions with the suffix ``_pooled``.

    Cases have the scores of `match_lesions`, and their number of ``lesions``.
    """
    matched, lesions, predicted = (
        sum(case[name] for case in cases) for name in ("lesions_matched", "lesions", "lesions_predicted")
    )
    iou, dice = (
        sum(case[name] * case["lesions_matched"] for case in cases if case["lesions_matched"])
        for name in ("segmentation_quality", "lesion_dice")
    )
    scores = _scores(matched, lesions, predicted, iou, dice)
    return {name if name in COUNTS else f"{name}_pooled": value for name, value in scores.items()}


def _scores(matched: int, lesions: int, predicted: int, iou: float, dice: float) -> dict[str, float | None]:
    """The scores from numbers of lesions, and from the sums of IoU and Dice over the matched pairs."""
    both = lesions + predicted
    return {
        "lesions_predicted": predicted,
        "lesions_matched": matched,
        "panoptic_quality": 2 * iou / both if both else 1.0,
        "recognition_quality": 2 * matched / both if both else 1.0,
        "segmentation_quality": iou / matched if matched else None,
        "lesion_dice": dice / matched if matched else None,
    }


def _rows(
    of: str, pieces: np.ndarray, sizes: np.ndarray, numbers: list[int], affine: np.ndarray, dice: Mapping[int, float]
) -> list[dict[str, Any]]:
    """A row for each of the lesions ``numbers``."""
    if not numbers:
        return []
    volumes = (sizes[numbers] * voxel_millilitres(affine)).tolist()
    centres = nib.affines.apply_affine(affine, ndimage.center_of_mass(pieces > 0, pieces, numbers))
    return [
        dict(zip(ROW, (of, number, volume, *centre, number in dice, dice.get(number)), strict=True))
        for number, volume, centre in zip(numbers, volumes, centres.tolist(), strict=True)
    ]
