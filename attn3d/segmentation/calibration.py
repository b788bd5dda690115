"""Calibration of probabilities, and whether uncertain voxels are the wrong ones.

Most voxels of a scan are background with a probability near 1. If all voxels are counted, every network looks well
calibrated, especially in scans with much air around the head. Therefore only voxels near labelled ones are counted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.special import entr

from attn3d.segmentation.errors import FileError

MARGIN = 5.0  # mm around the labelled voxels of the prediction and the reference
_ROUNDING = 1e-4  # mm; a slice at exactly the margin counts, although affines in files are single precision
_BINS = 15  # as in Guo et al.
# The bin of an entropy is its bits in half precision, read as an integer. They have the order of the numbers, and steps
# of at most 0.1 % of an entropy above 6e-5, so that small entropies are distinguished as well as large ones.
_ENTROPIES = 2**15
_OFF_ONE = 1e-3  # the largest difference of the sum of a voxel's probabilities from 1


class Calibration(NamedTuple):
    """Histograms of voxels. Those of several scans are added, so that the voxels are not kept in memory.

    MONAI's `calibration_binning` is not used, since it counts in float32, which cannot count beyond 2^24 voxels.

    Attributes:
        voxels: numbers of voxels with their highest probability in each of 15 equal bins, (m - 1)/15 < p <= m/15.
        confidence: the sum of these probabilities in each bin.
        right: the number of voxels with the right label in each bin.
        entropies: numbers of right and of wrong voxels by the bits of their entropy in half precision, (2, 2^15).
    """

    voxels: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    entropies: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, right: np.ndarray) -> Calibration:
        """Counts voxels, from the probabilities of their classes (N, classes) and whether each label is right (N,)."""
        confidence = probabilities.max(axis=1, initial=0).astype(float)
        bins = np.digitize(confidence, np.linspace(0, 1, _BINS + 1)[1:-1], right=True)
        entropy = np.abs(entr(probabilities.clip(0, 1)).sum(axis=1))  # abs: without the sign bit of -0
        bits = entropy.astype(np.float16).view(np.uint16)
        return cls(
            voxels=np.bincount(bins, minlength=_BINS),
            confidence=np.bincount(bins, confidence, minlength=_BINS),
            right=np.bincount(bins[right], minlength=_BINS),
            entropies=np.stack([np.bincount(bits[which], minlength=_ENTROPIES) for which in (right, ~right)]),
        )

    def scores(self) -> dict[str, float | None]:
        """The scores of these voxels, as in `evaluate`."""
        total = int(self.voxels.sum())
        error = float(np.abs(self.right - self.confidence).sum() / total) if total else None
        return {
            "voxels": total,
            "voxels_wrong": total - int(self.right.sum()),
            "expected_calibration_error": error,
            "error_auc": self._error_auc(),
        }

    def reliability(self) -> list[dict[str, float | None]]:
        """For each bin: the voxels, their mean highest probability, and the fraction that is right."""
        bins = zip(self.voxels.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return [
            {"voxels": n, "confidence": p / n if n else None, "accuracy": right / n if n else None}
            for n, p, right in bins
        ]

    def _error_auc(self) -> float | None:
        """The area under the ROC curve of entropy as a test for wrong voxels; None if all are right, or all wrong.

        It is the probability that a wrong voxel has a higher entropy than a right one; equal ones count half.
        """
        right, wrong = self.entropies
        if not (right.any() and wrong.any()):
            return None
        below = (np.cumsum(right) - right / 2) / right.sum()  # the fraction of right voxels below each entropy
        return float(below @ wrong / wrong.sum())


def summarise_calibration(cases: Mapping[str, Calibration]) -> dict[str, Any]:
    """The calibration of a cohort as in `evaluate`: by name of the case, and over the voxels of all cases."""
    overall = Calibration(*(functools.reduce(np.add, parts) for parts in zip(*cases.values(), strict=True)))
    return {
        "margin_mm": MARGIN,
        "cases": {name: one.scores() for name, one in cases.items()},
        "overall": overall.scores(),
        "reliability": overall.reliability(),
    }


def calibration_near(
    found: np.ndarray,
    true: np.ndarray,
    probabilities: nib.Nifti1Image,
    affine: np.ndarray,
    path: Path,
    classes: range,
    ignore: int | None = None,
) -> Calibration:
    """Counts the voxels of a scan within 5 mm of a labelled voxel of its prediction or its reference.

    Args:
        found: labels of the prediction, (X, Y, Z).
        true: labels of the reference.
        probabilities: probabilities of the prediction, (X, Y, Z, classes); only those near labelled voxels are used.
        affine: voxel indices to millimetres; distances are measured along its axes.
        path: the file of the probabilities.
        classes: the allowed numbers of classes, with the background.
        ignore: the value of reference voxels that are not counted.

    Raises:
        FileError: when there is another number of classes, or the values of a voxel are not between 0 and 1 with the
            sum 1.
    """
    if probabilities.shape[3] not in classes:
        wanted = f"{'at least ' if len(classes) > 1 else ''}{classes[0]}"
        raise FileError(
            path,
            f"has probabilities of {probabilities.shape[3]} classes, but the background and the labels are {wanted}; "
            "give the file that was written with the prediction, and all labels of its run",
        )
    counted = np.ones(true.shape, bool) if ignore is None else true != ignore
    labelled = ((found > 0) | (true > 0)) & counted
    sizes = nib.affines.voxel_sizes(affine)
    (box,) = ndimage.find_objects(labelled, max_label=1)
    if box is None:
        return Calibration.of(np.empty((0, 1)), np.empty(0, bool))
    more = np.ceil(MARGIN / sizes).astype(int).tolist()
    box = tuple(slice(max(0, side.start - one), side.stop + one) for side, one in zip(box, more, strict=True))
    near = ndimage.distance_transform_edt(~labelled[box], sampling=sizes) <= MARGIN + _ROUNDING
    near &= counted[box]
    values = np.asarray(probabilities.dataobj[box])[near]
    if not (np.abs(values.sum(axis=1) - 1) <= _OFF_ONE).all() or values.min() < 0:  # NaN as well
        raise FileError(path, "does not contain probabilities: those of a voxel must be 0 to 1 and sum to 1")
    return Calibration.of(values, (found == true)[box][near])
