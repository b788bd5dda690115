"""How well a segmentation agrees with its reference, in millimetres and millilitres.

An empty side is never dropped: a label that was missed, or found where there is none, gets the worst score, and
one that is rightly absent the best.
"""

import math
from collections.abc import Mapping

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice


def evaluate(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    tolerance: float = 2.0,
) -> dict[str, dict[str, float]]:
    """Scores each label of a 3-D segmentation.

    - ``dice``: 2 |P ∩ R| / (|P| + |R|).
    - ``hd95_mm``: the larger of the two 95th percentiles of the distances from one surface to the other.
    - ``surface_dice``: the part of both surfaces that lies within ``tolerance`` of the other.
    - ``volume_ml``, ``reference_ml``: what was found and what there is.

    Where one of the two is empty, Dice and surface Dice are 0 and the distance is the diagonal of the volume, the
    largest there can be; where both are, they are 1, 1 and 0. Surfaces are those of the arrays: where a
    structure is cut off by the border, the cut counts as its surface.

    Args:
        prediction: labels, (X, Y, Z).
        reference: labels of the same shape.
        affine: voxel indices to millimetres; gives spacing and the volume of a voxel.
        names: label values, and what to call them.
        tolerance: millimetres that a surface may be off for the surface Dice.

    Returns:
        The scores by name of the label.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"`prediction` must have the shape {reference.shape}, got {prediction.shape}")
    millilitres = abs(np.linalg.det(affine[:3, :3])) / 1000
    spacing = nib.affines.voxel_sizes(affine)
    diagonal = math.hypot(*(spacing * reference.shape))
    scores = {}
    for value, name in names.items():
        found, true = torch.from_numpy(np.stack([prediction == value, reference == value]))[:, None, None].float()
        if found.any() and true.any():
            surface = {"include_background": True, "spacing": spacing.tolist()}
            dice = compute_dice(found, true).item()
            distance = compute_hausdorff_distance(found, true, percentile=95, **surface).item()
            surface_dice = compute_surface_dice(found, true, class_thresholds=[tolerance], **surface).item()
        else:
            dice = surface_dice = float(not found.any() and not true.any())
            distance = (1 - dice) * diagonal
        scores[name] = {
            "dice": dice,
            "hd95_mm": distance,
            "surface_dice": surface_dice,
            "volume_ml": found.sum().item() * millilitres,
            "reference_ml": true.sum().item() * millilitres,
        }
    return scores
