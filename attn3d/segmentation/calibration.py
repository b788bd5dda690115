"""Whether probabilities can be believed: how often they are right, and whether the uncertain voxels are the wrong ones.

Most voxels of a scan are background that no network doubts. Over all of them every network is well calibrated, and the
better the more air there is around the head. So only voxels near what is labelled are looked at.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.special import entr

from attn3d.segmentation.errors import FileError

MARGIN = 5.0  # mm around what the prediction or the reference labels
_BINS = 15  # as in Guo et al.
_HALVES = 2**15  # numbers of half precision that are not negative; their bits count them in ascending order
_OFF_ONE = 1e-3  # of the sum of a voxel's probabilities


@dataclass(frozen=True)
class Calibration:
    """What is counted of voxels; of several scans it is added up, so that their voxels need not be kept.

    MONAI's `calibration_binning` counts in float32, which stops at 2^24 voxels.

    Attributes:
        voxels: how many have their highest probability in each of 15 bins of equal width, (m - 1)/15 < p <= m/15.
        confidence: the sum of these probabilities in each bin.
        right: how many of the voxels have the right label.
        entropies: how many right and how many wrong voxels have each entropy in half precision, (2, 2^15).
    """

    voxels: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    entropies: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, right: np.ndarray) -> Calibration:
        """Counts voxels.

        Args:
            probabilities: of the classes, (N, classes).
            right: whether the label of each voxel is, (N,).
        """
        confidence = probabilities.max(axis=1, initial=0).astype(float)
        bins = np.digitize(confidence, np.linspace(0, 1, _BINS + 1)[1:-1], right=True)
        entropy = np.abs(entr(probabilities.clip(0, 1)).sum(axis=1))  # without a -0
        halves = entropy.astype(np.float16).view(np.uint16)
        return cls(
            voxels=np.bincount(bins, minlength=_BINS),
            confidence=np.bincount(bins, confidence, minlength=_BINS),
            right=np.bincount(bins[right], minlength=_BINS),
            entropies=np.stack([np.bincount(halves[which], minlength=_HALVES) for which in (right, ~right)]),
        )

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.voxels + other.voxels,
            self.confidence + other.confidence,
            self.right + other.right,
            self.entropies + other.entropies,
        )

    def scores(self) -> dict[str, float | None]:
        """What `evaluate` says of these voxels."""
        total = int(self.voxels.sum())
        error = float(np.abs(self.right - self.confidence).sum() / total) if total else None
        return {
            "voxels": total,
            "voxels_wrong": total - int(self.right.sum()),
            "expected_calibration_error": error,
            "error_auc": self._error_auc(),
        }

    def reliability(self) -> list[dict[str, float | None]]:
        """For each bin its voxels, their mean highest probability and the part of them that is right."""
        return [
            {
                "voxels": voxels,
                "confidence": confidence / voxels if voxels else None,
                "accuracy": right / voxels if voxels else None,
            }
            for voxels, confidence, right in zip(
                self.voxels.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True
            )
        ]

    def _error_auc(self) -> float | None:
        """The area under the ROC curve of entropy as a sign of error, None where nothing or everything is wrong."""
        from sklearn.metrics import roc_auc_score  # slow to import, and nothing else here needs it

        right, wrong = self.entropies
        if not (right.any() and wrong.any()):
            return None
        there = np.flatnonzero(right + wrong)
        return float(
            roc_auc_score(
                np.repeat([0, 1], len(there)),
                np.tile(there, 2),
                sample_weight=np.concatenate([right[there], wrong[there]]),
            )
        )


def summarise_calibration(cases: Mapping[str, Calibration]) -> dict[str, Any]:
    """What `evaluate` returns of the calibration of a cohort, by name of the case and over all their voxels."""
    overall = functools.reduce(operator.add, cases.values())
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
    ignore: int | None = None,
) -> Calibration:
    """Counts the voxels of a scan within 5 mm of what its prediction or its reference labels.

    Args:
        found: labels of the prediction, (X, Y, Z).
        true: labels of the reference.
        probabilities: what the prediction comes from, (X, Y, Z, classes); read near what is labelled only.
        affine: voxel indices to millimetres; distances are those along its axes.
        path: of the probabilities.
        ignore: the value of reference voxels that are not counted.

    Raises:
        FileError: when the values are no probabilities of classes.
    """
    counted = np.ones(true.shape, bool) if ignore is None else true != ignore
    labelled = ((found > 0) | (true > 0)) & counted
    sizes = nib.affines.voxel_sizes(affine)
    (box,) = ndimage.find_objects(labelled, max_label=1)
    if box is None:
        return Calibration.of(np.empty((0, 1)), np.empty(0, bool))
    more = np.ceil(MARGIN / sizes).astype(int).tolist()
    box = tuple(slice(max(0, side.start - one), side.stop + one) for side, one in zip(box, more, strict=True))
    near = ndimage.distance_transform_edt(~labelled[box], sampling=sizes) <= MARGIN
    near &= counted[box]
    values = np.asarray(probabilities.dataobj[box])[near]
    if not (np.abs(values.sum(axis=1) - 1) <= _OFF_ONE).all() or values.min() < 0:  # NaN as well
        raise FileError(path, "holds no probabilities of classes: those of a voxel must be 0 to 1 and sum to 1")
    return Calibration.of(values, (found == true)[box][near])
