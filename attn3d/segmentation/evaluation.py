"""Scores of segmentations against references: overlap, distances in mm, volumes in ml and lesions.

Empty cases are included: a missed label or a false alarm gets the worst score. A label that is in neither the
prediction nor the reference gets the best score. Scores of a cohort are means over all cases; means over the cases with
the label, since many empty cases raise the mean over all cases; and scores of all cases pooled as one volume.
"""

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from scipy import ndimage, spatial

from attn3d.arguments import nonnegative_number
from attn3d.plotting.hanging import invertible
from attn3d.segmentation.calibration import Calibration, calibration_near, summarise_calibration
from attn3d.segmentation.components import components
from attn3d.segmentation.datasets.predictions import beside, find_pairs
from attn3d.segmentation.errors import FileError, failure_noted, failure_of
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.io.files import read_map, read_segmentation, values_in
from attn3d.segmentation.io.writing import read_json
from attn3d.segmentation.labels import ANY, Labels
from attn3d.segmentation.lesions import match_lesions
from attn3d.segmentation.summaries import relative_difference, summarise, write_scores

# These options give the fastest search if surfaces are far apart, by a factor of 30 for nested balls.
_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
_FEW = 32  # a file with at most this number of values is not taken for a scan
_MOST_CLASSES = 256  # of a label map
_ROUNDING = 1e-6  # mm; a surface at exactly the tolerance is within it


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    labels: Labels | Mapping[int, str],
    tolerance: float = 2.0,
) -> dict[str, dict[str, float | None]]:
    """Scores each label, or each region, of a 3-D segmentation. Voxels that the reference ignores are not counted.

    - ``dice``: 2 |P ∩ R| / (|P| + |R|).
    - ``hd95_mm``: the larger of the two 95th percentiles of the distances from one surface to the other.
    - ``surface_dice``: the fraction of both surfaces within ``tolerance`` of the other surface.
    - ``relative_volume_difference``: ||P| - |R|| / |R|.
    - ``volume_ml``, ``reference_ml``: the volumes of the prediction and of the reference.
    - ``lesions``: the number of connected components of the reference (26 neighbours); ``lesions_found``: the number
      of these with at least one predicted voxel; ``false_lesions``: the number of components of the prediction
      without a voxel of the reference. This is the definition of the ISLES 2022 challenge.

    If one of the two masks is empty, Dice and surface Dice are 0, and the distance is the diagonal of the volume, the
    largest possible one. If both are empty, they are 1, 1 and 0. The relative volume difference is None if only the
    reference is empty, and 0 if both are. If the border of the volume cuts a structure, the cut is a part of its
    surface.

    Args:
        prediction: labels, (X, Y, Z).
        reference: labels of the same shape.
        affine: maps voxel indices to millimetres; may be sheared.
        labels: label values and their names.
        tolerance: the largest distance in mm that the surface Dice accepts.

    Returns:
        The scores by name of the label.

    Raises:
        TypeError: when ``tolerance`` is not a number.
        ValueError: when the arrays do not have three axes or their shapes differ, ``affine`` is not an invertible 4 x 4
            matrix, ``tolerance`` is negative, or two labels have the same name.
    """
    tolerance, affine = nonnegative_number("tolerance", tolerance), invertible(affine)
    if reference.ndim != 3:
        raise ValueError(f"`reference` must be (X, Y, Z), got shape {reference.shape}")
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

    A file that cannot be used does not stop the others. It is listed under ``"failed"``, like a file without a
    counterpart in the other folder.

    The scores of a case are those of `score`, by label or region. Unless one of these contains all others, there are
    also the scores of ``"any label"``, all labels taken as one. The scores of the cohort, by label:

    - ``dice``, ``hd95_mm``, ``surface_dice``: means over all ``cases``, with the values of `score` for empty ones;
    - the same with the suffix ``_with``, and ``relative_volume_difference_with``: means over the ``cases_with`` the
      label in their reference; None if there is no such case;
    - ``dice_pooled``, ``relative_volume_difference_pooled``: the scores of all cases pooled as one volume;
    - ``volume_ml``, ``reference_ml``, ``lesions``, ``lesions_found``, ``false_lesions``: totals;
    - ``cases_missed``: the number of cases with the label in which none of it was predicted; ``cases_false``: the
      number of cases without the label in which it was predicted.

    With ``probabilities``, ``"calibration"`` has scores for each of its ``"cases"``, and ``"overall"`` for the voxels
    of all cases. They count the ``"voxels"`` within ``"margin_mm"`` of a voxel that is labelled in the prediction or in
    the reference:

    - ``expected_calibration_error``: sum over 15 bins of |voxels / all voxels| |accuracy - confidence|, of the highest
      probability of each voxel (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599);
      ``"reliability"`` has the bins;
    - ``error_auc``: the area under the ROC curve of the entropy of a voxel's probabilities, as a test for wrong labels:
      1 if all wrong voxels are more uncertain than all right ones, 0.5 if the entropy is not related to errors. None
      if no voxel is wrong, or all are.

    Args:
        prediction: a NIfTI file, or a folder of them.
        reference: a NIfTI file, or a folder of files with the names of the predictions.
        out: the folder for ``scores.csv`` (a row for each case and label, then three rows for each label over the
            cohort) and ``scores.json``, and if requested ``lesions.csv`` and ``calibration.png``, a reliability
            diagram; by default no file is written.
        labels: the allowed values other than 0 and their names, or `Labels` from `read_labels`; by default all values
            that occur in the files, where a scan is not accepted.
        tolerance: the largest distance in mm that the surface Dice accepts.
        lesions: whether to also match lesions one to one, with an IoU above 0.5, and to add the scores of
            `attn3d.segmentation.lesions.match_lesions`. For the cohort, they are computed over all lesions and have
            the suffix ``_pooled``. ``"lesions"`` has a row for each lesion.
        probabilities: whether to also measure the calibration of the probabilities that
            ``predict(probabilities=True)`` wrote beside the predictions.
        overwrite: whether to replace existing scores.
        quiet: whether to show no progress bar.

    Returns:
        The content of ``scores.json``: ``"simulated"``, whether the references are those of a simulated cohort;
        ``"tolerance_mm"``, ``"labels"``, ``"cases"``, ``"overall"`` and ``"failed"``, and if requested ``"lesions"``
        and ``"calibration"``.

    Raises:
        FileError: when nothing can be scored, or scores exist and ``overwrite`` is not set.
        TypeError: when ``tolerance`` is not a number.
        ValueError: when ``tolerance`` is negative, two labels have the same name, or ``probabilities`` are requested
            for regions.
    """
    tolerance = nonnegative_number("tolerance", tolerance)
    scores_file = None if out is None else Path(out) / "scores.json"
    if scores_file is not None and scores_file.exists() and not overwrite:
        raise FileError(scores_file, "already exists; choose another folder, or overwrite it (--overwrite)")
    pairs, failed = find_pairs(Path(prediction), Path(reference))
    names_given = labels is not None
    labels = _labels_in(pairs.values(), failed) if labels is None else Labels.of(labels)
    pairs = {name: pair for name, pair in pairs.items() if not failed.keys() & {str(path) for path in pair}}
    if labels.regions and probabilities:
        raise ValueError("`probabilities` are for labels, got regions, whose probabilities do not sum to 1")
    if not labels.names and failed:
        raise failure_of(prediction, failed)
    if not labels.names:
        raise FileError(prediction, "nothing is labelled, here or in the reference; give the allowed `labels`")

    least = len(labels.channels)
    most = least if names_given else _MOST_CLASSES  # a network may have labels that do not occur in the files
    classes = range(least, most + 1) if probabilities else None
    cases: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    calibrations: dict[str, Calibration] = {}
    for name, pair in track(pairs.items(), "scoring", len(pairs), disable=quiet):
        with failure_noted(pair[0], failed):
            cases[name], found, calibration = _score_files(*pair, labels, tolerance, lesions, classes)
            rows += [{"case": name, **row} for row in found]
            if calibration is not None:
                calibrations[name] = calibration
    if not cases:
        raise failure_of(prediction, failed)

    scores = summarise(cases, labels, tolerance, failed, _simulated(Path(reference)))
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
    """The scores of one label; ``longest`` is the distance in mm if only one of the masks is empty."""
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
    """Crops both to the smallest box that contains the labelled voxels of both; it may be empty.

    No surface changes, since voxels outside of an array count as background.
    """
    (box,) = ndimage.find_objects((found > 0) | (true > 0), max_label=1)
    box = box or (slice(0),) * found.ndim
    return np.ascontiguousarray(found[box]), np.ascontiguousarray(true[box])


def _surface_distances(found: np.ndarray, true: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distances in mm from each surface voxel of one mask to the nearest of the other, in both directions.

    The surface of a mask consists of its voxels that share a face with the background. The grid may be sheared.
    """
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ affine[:3, :3].T for mask in (found, true)]
    one, other = (spatial.KDTree(surface, **_TREE) for surface in surfaces)
    return other.query(surfaces[0])[0], one.query(surfaces[1])[0]


def _diagonal(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between two corners of a grid."""
    diagonals = [
        affine[:3, :3] @ (np.array(shape) * signs) for signs in ((1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))
    ]
    return float(np.linalg.norm(diagonals, axis=1).max())


def _lesions(mask: np.ndarray, touching: np.ndarray) -> tuple[int, int]:
    """The number of connected components of a mask, and the number of these that share a voxel with another mask."""
    pieces, _ = components(mask)
    return int(pieces.max(initial=0)), len(np.unique(pieces[mask & touching]))


def _labels_in(pairs: Collection[tuple[Path, Path]], failed: MutableMapping[str, str]) -> Labels:
    """The values that occur in the pairs, each with a name.

    A pair with an unusable file is left out; ``failed`` gets the problem of the file.
    """
    values: set[int] = set()
    for pair in pairs:
        found: list[list[int]] = []
        for path in pair:
            with failure_noted(path, failed):
                found.append(_values(path))
        if len(found) == len(pair):
            values.update(*found)
    return Labels.of({value: f"label {value}" for value in values - {0}})


def _values(path: Path) -> list[int]:
    """The values of a label map."""
    label = np.asarray(read_segmentation(path).dataobj)
    found = values_in(label).tolist()
    if len(found) > _FEW and _differs_everywhere(label):
        raise FileError(
            path,
            f"looks like a scan: it has {len(found)} values, and most neighbouring voxels differ; give a label map, or "
            "name its values with `labels`",
        )
    return found


def _differs_everywhere(label: np.ndarray) -> bool:
    """Whether most neighbours among the voxels that are not 0 differ. The regions of a label map are larger."""
    same, different = 0, 0
    for axis in range(label.ndim):
        along = np.moveaxis(label, axis, 0)
        one, other = along[1:], along[:-1]
        both = (one > 0) & (other > 0)
        same += int((both & (one == other)).sum())
        different += int((both & (one != other)).sum())
    return different > same


def _score_files(
    prediction: Path, reference: Path, labels: Labels, tolerance: float, lesions: bool, classes: range | None
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], Calibration | None]:
    """The scores of a case by label, a row for each of its lesions, and its calibration.

    ``classes`` are the allowed numbers of classes of its probabilities; None without calibration.
    """
    true = read_segmentation(reference, values=labels.readable)
    found = read_segmentation(prediction, true, (0, *labels.present), of=f"the reference {reference}")
    one, other = np.asarray(found.dataobj), np.asarray(true.dataobj)
    calibration = None
    if classes is not None:
        path = beside(prediction, "probabilities")
        found_probabilities = read_map(path, true, volumes=None)
        calibration = calibration_near(one, other, found_probabilities, true.affine, path, classes, labels.ignore)
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


def _simulated(reference: Path) -> bool:
    """Whether a file above the references says that they are simulated: of their data set, or of a run."""
    path = reference.resolve()
    for folder in (path, *path.parents)[:3]:
        for name in ("dataset.json", "config.json"):
            with suppress(FileError):
                found = read_json(folder / name, "simulated")["simulated"]
                if found is True or isinstance(found, dict):  # of a run, or of a cohort
                    return True
    return False


def _masks(found: np.ndarray, true: np.ndarray, labels: Labels) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name and both masks of each label, and of all labels as one unless a label contains all others."""
    for (name, one), (_, other) in zip(labels.masks(found), labels.masks(true), strict=True):
        yield name, one, other
    if not labels.one_holds_all:
        yield ANY, found > 0, true > 0
