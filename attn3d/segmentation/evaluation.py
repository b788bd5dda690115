"""Scores of segmentations against references: overlap, distances in mm, volumes in ml and lesions.

Empty cases are included: a missed label or a false alarm gets the worst score, and a label that is in neither of the
two the best. Scores of a cohort are means over all cases, means over the cases with the label, since many empty cases
raise the first one, and scores of all cases pooled as one volume.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from scipy import ndimage, spatial

from attn3d.segmentation.calibration import Calibration, calibration_near, summarise_calibration
from attn3d.segmentation.components import components
from attn3d.segmentation.datasets.predictions import find_pairs, probabilities_of
from attn3d.segmentation.errors import FileError, failure_noted
from attn3d.segmentation.files import read_probabilities, read_segmentation, values_in
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.labels import ANY, Labels
from attn3d.segmentation.lesions import match_lesions
from attn3d.segmentation.summaries import relative_difference, summarise, write_scores

# These options give the fastest search if surfaces are far apart, by a factor of 30 for nested balls.
_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
_ROUNDING = 1e-6  # mm; a surface at the tolerance is within it


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    labels: Labels | Mapping[int, str],
    tolerance: float = 2.0,
) -> dict[str, dict[str, float | None]]:
    """Scores each label, or each region, of a 3-D segmentation; what the reference says to ignore counts nowhere.

    - ``dice``: 2 |P ∩ R| / (|P| + |R|).
    - ``hd95_mm``: the larger of the two 95th percentiles of the distances from one surface to the other.
    - ``surface_dice``: the fraction of both surfaces within ``tolerance`` of the other surface.
    - ``relative_volume_difference``: ||P| - |R|| / |R|.
    - ``volume_ml``, ``reference_ml``: the volumes of the prediction and of the reference.
    - ``lesions``, ``lesions_found``, ``false_lesions``: the connected components of the reference, those of which a
      voxel was found, and the components of the prediction that touch none; voxels are connected by their faces,
      edges and corners (26). The definition of the ISLES 2022 challenge.

    Where one of the two is empty, Dice and surface Dice are 0 and the distance is the diagonal of the volume, the
    largest there can be; where both are, they are 1, 1 and 0. The relative volume difference has no value (None)
    where the reference is empty and the prediction is not, and is 0 where both are. Surfaces are those of the
    arrays: where a structure is cut off by the border, the cut counts as its surface.

    Args:
        prediction: labels, (X, Y, Z).
        reference: labels of the same shape.
        affine: voxel indices to millimetres; gives distances, whatever its shear, and the volume of a voxel.
        labels: label values, and what to call them.
        tolerance: millimetres that a surface may be off for the surface Dice.

    Returns:
        The scores by name of the label.

    Raises:
        ValueError: when the shapes differ, or two labels have one name.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"`prediction` must have the shape {reference.shape}, got {prediction.shape}")
    labels = Labels.of(labels)
    longest = _diagonal(affine, reference.shape)
    prediction, reference = _cropped(*labels.compared(prediction, reference))
    masks = zip(labels.masks(prediction), labels.masks(reference), strict=True)
    return {name: _score_mask(found, true, affine, tolerance, longest) for (name, found), (_, true) in masks}


def evaluate(
    prediction: Path | str,
    reference: Path | str,
    out: Path | str | None = None,
    *,
    labels: Labels | Mapping[int, str] | None = None,
    tolerance: float = 2.0,
    lesions: bool = False,
    probabilities: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores predicted files against their references, by case and over the cohort.

    A file that cannot be used does not stop the others; it is listed under ``"failed"``, as is a file of one folder
    without its counterpart in the other.

    The scores of a case are those of `score`, by label or region; where none of them is all, also those of
    ``"any label"``, all taken as one. Those of the cohort, by label:

    - ``dice``, ``hd95_mm``, ``surface_dice``: means over all ``cases``, the empty ones as `score` counts them;
    - the same with ``_with`` behind, and ``relative_volume_difference_with``: means over the ``cases_with`` the label
      in their reference (None where there is no such case);
    - ``dice_pooled``, ``relative_volume_difference_pooled``: of all cases taken as one volume;
    - ``volume_ml``, ``reference_ml``, ``lesions``, ``lesions_found``, ``false_lesions``: totals;
    - ``cases_missed``, ``cases_false``: cases with the label in which nothing of it was found, and cases without it
      in which something was.

    With ``probabilities``, ``"calibration"`` holds for each of its ``"cases"`` and ``"overall"``, all their voxels
    taken together, and over the ``"voxels"`` within ``"margin_mm"`` of what the prediction or the reference labels:

    - ``expected_calibration_error``: sum over 15 bins of |voxels / all voxels| |accuracy - confidence|, of the highest
      probability of each voxel (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599);
      ``"reliability"`` has the bins;
    - ``error_auc``: the area under the ROC curve of "this voxel's label is wrong" against the entropy of its
      probabilities: 1 where the uncertain voxels are the wrong ones, 0.5 where entropy says nothing. None where no
      voxel is wrong, or all are.

    Args:
        prediction: a NIfTI file, or a folder of them.
        reference: a NIfTI file, or a folder of files with the names of the predictions.
        out: the folder for ``scores.csv`` (a row for each case and label, then three for each label over all) and
            ``scores.json``, with ``lesions.csv`` and ``calibration.png``, a reliability diagram, where they are asked
            for; by default nothing is written.
        labels: the allowed values other than 0 and their names, or `Labels` from `read_labels`; by default all values
            that occur.
        tolerance: millimetres that a surface may be off for the surface Dice.
        lesions: also how well lesions are matched one to one, those of an IoU above 0.5, as
            `attn3d.segmentation.lesions.match_lesions` says; over the cohort of all lesions taken together, with
            ``_pooled`` behind. ``"lesions"`` has a row for each.
        probabilities: also how far the probabilities beside the predictions can be believed, those that
            ``predict(probabilities=True)`` wrote.
        overwrite: whether scores that are there may be replaced.
        quiet: leaves the progress bar out.

    Returns:
        what ``scores.json`` holds: ``"tolerance_mm"``, ``"labels"``, ``"cases"``, ``"overall"`` and ``"failed"``; and
        ``"lesions"`` and ``"calibration"`` where they are asked for.

    Raises:
        FileError: when nothing can be scored, or scores are there and may not be replaced.
        ValueError: when ``tolerance`` is negative, or two labels have one name.
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0 mm, got {tolerance}")
    scores_file = None if out is None else Path(out) / "scores.json"
    if scores_file is not None and scores_file.exists() and not overwrite:
        raise FileError(scores_file, "already exists; choose another folder, or allow to overwrite it")
    pairs, failed = find_pairs(Path(prediction), Path(reference))
    labels = _labels(pairs.values()) if labels is None else Labels.of(labels)
    if labels.regions and probabilities:
        raise ValueError("`probabilities` are for labels, got regions, whose probabilities do not sum to 1")
    if not labels.names and failed:
        raise FileError(*next(iter(failed.items())))
    if not labels.names:
        raise FileError(prediction, "nothing is labelled, here or in the reference; say which `labels` there may be")

    cases: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    calibrations: dict[str, Calibration] = {}
    for name, pair in track(pairs.items(), "scoring", len(pairs), disable=quiet):
        with failure_noted(pair[0], failed):
            cases[name], found, calibration = _score_files(*pair, labels, tolerance, lesions, probabilities)
            rows += [{"case": name, **row} for row in found]
            if calibration is not None:
                calibrations[name] = calibration
    if not cases:
        path, problem = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more files failed)" if len(failed) > 1 else ""
        raise FileError(path, problem + more)

    scores = summarise(cases, labels, tolerance, failed)
    if lesions:
        scores["lesions"] = rows
    if probabilities:
        scores["calibration"] = summarise_calibration(calibrations)
    if scores_file is not None:
        write_scores(scores_file.parent, scores)
    return scores


def _score_mask(
    found: np.ndarray, true: np.ndarray, affine: np.ndarray, tolerance: float, longest: float
) -> dict[str, float | None]:
    """The scores of one label; ``longest`` is the distance in mm where only one of the two has it."""
    millilitres = voxel_millilitres(affine)
    found, true = _cropped(found, true)
    found_voxels, true_voxels = int(found.sum()), int(true.sum())
    if found_voxels and true_voxels:
        dice = float(2 * (found & true).sum() / (found_voxels + true_voxels))
        distances = _surface_distances(found, true, affine)
        distance = max(float(np.percentile(one, 95)) for one in distances)
        surface_dice = float((np.concatenate(distances) <= tolerance + _ROUNDING).mean())
    else:
        dice = surface_dice = float(found_voxels == true_voxels)
        distance = (1 - dice) * longest
    lesions, lesions_found = _lesions(true, touching=found)
    pieces, touching = _lesions(found, touching=true)
    return {
        "dice": dice,
        "hd95_mm": distance,
        "surface_dice": surface_dice,
        "relative_volume_difference": relative_difference(found_voxels, true_voxels),
        "volume_ml": float(found_voxels * millilitres),
        "reference_ml": float(true_voxels * millilitres),
        "lesions": lesions,
        "lesions_found": lesions_found,
        "false_lesions": pieces - touching,
    }


def _cropped(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both within the smallest box around what either of them labels, which may be empty.

    No surface changes: what lies beyond the box is background, as is what lies beyond the array.
    """
    (box,) = ndimage.find_objects((found > 0) | (true > 0), max_label=1)
    box = box or (slice(0),) * found.ndim
    return np.ascontiguousarray(found[box]), np.ascontiguousarray(true[box])


def _surface_distances(found: np.ndarray, true: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From each voxel of one surface to the nearest of the other, in mm, and back; on sheared grids too.

    The surface of a mask are its voxels with a face that belongs to no other of them.
    """
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ affine[:3, :3].T for mask in (found, true)]
    one, other = (spatial.KDTree(surface, **_TREE) for surface in surfaces)
    return other.query(surfaces[0])[0], one.query(surfaces[1])[0]


def _diagonal(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """Millimetres between the two corners of a grid that are farthest from each other."""
    diagonals = [
        affine[:3, :3] @ (np.array(shape) * signs) for signs in ((1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))
    ]
    return float(np.linalg.norm(diagonals, axis=1).max())


def _lesions(mask: np.ndarray, touching: np.ndarray) -> tuple[int, int]:
    """How many connected components a mask has, and how many of them share a voxel with another mask."""
    pieces, _ = components(mask)
    return int(pieces.max(initial=0)), len(np.unique(pieces[mask & touching]))


def _labels(pairs: Collection[tuple[Path, Path]]) -> Labels:
    """The values in files that can be read, and a name for each."""
    values: set[int] = set()
    for path in (path for pair in pairs for path in pair):
        with suppress(Exception):  # said when the file is scored
            values.update(values_in(np.asarray(read_segmentation(path).dataobj)).tolist())
    return Labels.of({value: f"label {value}" for value in values - {0}})


def _score_files(
    prediction: Path, reference: Path, labels: Labels, tolerance: float, lesions: bool, probabilities: bool
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], Calibration | None]:
    """The scores of a case by label, a row for each of its lesions, and its calibration."""
    true = read_segmentation(reference, values=labels.readable)
    found = read_segmentation(prediction, true, values=(0, *labels.present))
    one, other = np.asarray(found.dataobj), np.asarray(true.dataobj)
    calibration = None
    if probabilities:
        path = probabilities_of(prediction)
        calibration = calibration_near(one, other, read_probabilities(path, true), true.affine, path, labels.ignore)
    scores: dict[str, dict[str, Any]] = {**score(one, other, true.affine, labels, tolerance)}
    one, other = labels.compared(one, other)
    if not labels.one_holds_all:
        scores[ANY] = score(one > 0, other > 0, true.affine, {1: "all"}, tolerance)["all"]
    rows = []
    for name, mask, true_mask in _masks(one, other, labels) if lesions else ():
        more, matched = match_lesions(mask, true_mask, true.affine)
        scores[name] |= more
        rows += [{"label": name, **row} for row in matched]
    return scores, rows, calibration


def _masks(found: np.ndarray, true: np.ndarray, labels: Labels) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name and masks of each label, and of all taken as one unless a label is that."""
    for (name, one), (_, other) in zip(labels.masks(found), labels.masks(true), strict=True):
        yield name, one, other
    if not labels.one_holds_all:
        yield ANY, found > 0, true > 0
