"""How well segmentations agree with their references, in millimetres, millilitres and lesions.

An empty side is never dropped: a label that was missed, or found where there is none, gets the worst score, and
one that is rightly absent the best. Means over a cohort are given over all cases under that rule and over those
cases that have the label, since the first flatters where most cases are empty; and pooled, all cases as one volume.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track
from scipy import ndimage, spatial

from attn3d.segmentation.components import components
from attn3d.segmentation.datasets.listing import files_by_name, stem
from attn3d.segmentation.errors import FileError, failure_noted
from attn3d.segmentation.files import read_segmentation, values_in
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.labels import ANY, Labels
from attn3d.segmentation.writing import sweep, write_json, write_table

# Of all trees the one that is searched fastest where surfaces are far apart: by a factor of 30 for nested balls.
_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
_ROUNDING = 1e-6  # mm; a surface at the tolerance is within it
_AGREEMENT = ("dice", "hd95_mm", "surface_dice")
_TOTALS = ("volume_ml", "reference_ml", "lesions", "lesions_found", "false_lesions")


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
    - ``surface_dice``: the part of both surfaces that lies within ``tolerance`` of the other.
    - ``relative_volume_difference``: ||P| - |R|| / |R|.
    - ``volume_ml``, ``reference_ml``: what was found and what there is.
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

    Args:
        prediction: a NIfTI file, or a folder of them.
        reference: a NIfTI file, or a folder of files with the names of the predictions.
        out: the folder for ``scores.csv`` (a row for each case and label, then three for each label over all) and
            ``scores.json``; by default nothing is written.
        labels: values other than 0 that may occur, and what to call them, or `Labels`, as `read_labels` gives them; by
            default all that occur.
        tolerance: millimetres that a surface may be off for the surface Dice.
        overwrite: whether scores that are there may be replaced.
        quiet: leaves the progress bar out.

    Returns:
        what ``scores.json`` holds: ``"tolerance_mm"``, ``"labels"``, ``"cases"``, ``"overall"`` and ``"failed"``.

    Raises:
        FileError: when nothing can be scored, or scores are there and may not be replaced.
        ValueError: when ``tolerance`` is negative, or two labels have one name.
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0 mm, got {tolerance}")
    scores_file = None if out is None else Path(out) / "scores.json"
    if scores_file is not None and scores_file.exists() and not overwrite:
        raise FileError(scores_file, "is there already; choose another folder, or allow to overwrite it")
    pairs, failed = _pairs(Path(prediction), Path(reference))
    labels = _labels(pairs.values()) if labels is None else Labels.of(labels)
    if not labels.names and failed:
        raise FileError(*next(iter(failed.items())))
    if not labels.names:
        raise FileError(prediction, "nothing is labelled, here or in the reference; say which `labels` there may be")

    cases = {}
    for name, pair in track(pairs.items(), "scoring", len(pairs), disable=quiet):
        with failure_noted(pair[0], failed):
            cases[name] = _score_files(*pair, labels, tolerance)
    if not cases:
        path, problem = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more files failed)" if len(failed) > 1 else ""
        raise FileError(path, problem + more)

    scores = summarise(cases, labels, tolerance, failed)
    if scores_file is not None:
        write_scores(scores_file.parent, scores)
    return scores


def summarise(cases: Mapping[str, Any], labels: Labels, tolerance: float, failed: Mapping[str, str]) -> dict[str, Any]:
    """What `evaluate` returns, of cases that are scored: by name of the case and of the label as `score` gives them."""
    scored = next(iter(cases.values()))
    return {
        "tolerance_mm": tolerance,
        "labels": labels.as_dict(),
        "cases": cases,
        "overall": {name: _overall([case[name] for case in cases.values()]) for name in scored},
        "failed": failed,
    }


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Writes ``scores.csv`` and ``scores.json``; the scores are there when the latter is."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    file = folder / "scores.json"
    file.unlink(missing_ok=True)
    write_table(file.with_suffix(".csv"), pd.DataFrame(_rows(scores), dtype=object))
    write_json(file, scores)


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
        "relative_volume_difference": _relative_difference(found_voxels, true_voxels),
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


def _relative_difference(found: float, true: float) -> float | None:
    if true:
        return abs(found - true) / true
    return None if found else 0.0


def _pairs(prediction: Path, reference: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """The predictions and references by the name of their case, and files without a counterpart."""
    for path in (prediction, reference):
        if not path.exists():
            raise FileError(path, "is not there; give a NIfTI file or a folder of them")
    if prediction.is_dir() != reference.is_dir():
        file = reference if prediction.is_dir() else prediction
        raise FileError(file, "is one file for a folder; give two files or two folders")
    if not prediction.is_dir():
        return {stem(reference): (prediction, reference)}, {}
    (predictions, twice), (references, others) = files_by_name(prediction), files_by_name(reference)
    failed = {str(path): problem for path, problem in (twice | others).items()}
    ambiguous = {stem(path) for path in failed}
    pairs = {name: (predictions[name], path) for name, path in references.items() if name in predictions}
    if not pairs and not failed:
        raise FileError(prediction, "no .nii or .nii.gz here has the name of a reference; name them alike")
    for files, other in ((predictions, reference), (references, prediction)):
        alone = [path for name, path in files.items() if name not in pairs.keys() | ambiguous]
        failed |= {str(path): f"has no file of its name in {other}" for path in alone}
    return pairs, failed


def _labels(pairs: Collection[tuple[Path, Path]]) -> Labels:
    """The values in files that can be read, and a name for each."""
    values: set[int] = set()
    for path in (path for pair in pairs for path in pair):
        with suppress(Exception):  # said when the file is scored
            values.update(values_in(np.asarray(read_segmentation(path).dataobj)).tolist())
    return Labels.of({value: f"label {value}" for value in values - {0}})


def _score_files(
    prediction: Path, reference: Path, labels: Labels, tolerance: float
) -> dict[str, dict[str, float | None]]:
    """The scores of a case by label."""
    true = read_segmentation(reference, values=labels.readable)
    found = read_segmentation(prediction, true, values=(0, *labels.present))
    one, other = np.asarray(found.dataobj), np.asarray(true.dataobj)
    scores = score(one, other, true.affine, labels, tolerance)
    if not labels.one_holds_all:
        one, other = labels.compared(one, other)
        scores[ANY] = score(one > 0, other > 0, true.affine, {1: "all"}, tolerance)["all"]
    return scores


def mean_dice(scores: Mapping[str, Any]) -> float | None:
    """One number for a cohort: the mean over the labels of their mean Dice in the cases that have them.

    Args:
        scores: from `evaluate`.

    Returns:
        None when no case has any label.
    """
    return _mean(
        [line["dice_with"] for label, line in scores["overall"].items() if label != ANY and line["cases_with"]]
    )


def _overall(cases: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of a label over the cohort, as `evaluate` defines them."""
    having = [case for case in cases if case["reference_ml"] > 0]
    totals = {name: sum(case[name] for case in cases) for name in _TOTALS}
    volume = totals["volume_ml"] + totals["reference_ml"]
    shared = sum(case["dice"] * (case["volume_ml"] + case["reference_ml"]) for case in cases)  # 2 |P ∩ R|, in ml
    return {
        "cases": len(cases),
        "cases_with": len(having),
        "cases_missed": sum(case["volume_ml"] == 0 for case in having),
        "cases_false": sum(case["reference_ml"] == 0 < case["volume_ml"] for case in cases),
        **{name: _mean([case[name] for case in cases]) for name in _AGREEMENT},
        **{
            f"{name}_with": _mean([case[name] for case in having])
            for name in (*_AGREEMENT, "relative_volume_difference")
        },
        "dice_pooled": shared / volume if volume else 1.0,
        "relative_volume_difference_pooled": _relative_difference(totals["volume_ml"], totals["reference_ml"]),
        **totals,
    }


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of ``scores.csv``; what has no value is left empty."""
    rows = [
        {"case": case, "label": label, **line}
        for case, labels in scores["cases"].items()
        for label, line in labels.items()
    ]
    means = {"mean of all cases": "", "mean of cases with the label": "_with", "all cases as one volume": "_pooled"}
    for title, suffix in means.items():
        for label, line in scores["overall"].items():
            row = {name: line.get(name + suffix) for name in (*_AGREEMENT, "relative_volume_difference")}
            totals = {name: line[name] for name in _TOTALS} if suffix == "_pooled" else {}
            rows.append({"case": title, "label": label, **row, **totals})
    return rows
