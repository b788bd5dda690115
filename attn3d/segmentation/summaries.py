"""Scores over a cohort, and the files with the scores."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attn3d.plotting import plot_calibration
from attn3d.segmentation.io.writing import finished_file, sweep, write_json, write_table
from attn3d.segmentation.labels import ANY, Labels
from attn3d.segmentation.lesions import COUNTS, QUALITIES, ROW, pooled

_AGREEMENT = ("dice", "hd95_mm", "surface_dice")
_TOTALS = ("volume_ml", "reference_ml", "lesions", "lesions_found", "false_lesions")


def summarise(
    cases: Mapping[str, Any], labels: Labels, tolerance: float, failed: Mapping[str, str], simulated: bool = False
) -> dict[str, Any]:
    """Returns the result of `evaluate` from the scores of the cases, by name of the case and of the label."""
    scored = next(iter(cases.values()))
    return {
        "simulated": simulated,
        "tolerance_mm": tolerance,
        "labels": labels.as_dict(),
        "cases": cases,
        "overall": {name: _overall([case[name] for case in cases.values()]) for name in scored},
        "failed": failed,
    }


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Writes ``scores.csv``, the files of the options, and last ``scores.json``: if it exists, all are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    file, lesions, diagram = (folder / name for name in ("scores.json", "lesions.csv", "calibration.png"))
    for path in (file, lesions, diagram):
        path.unlink(missing_ok=True)
    write_table(file.with_suffix(".csv"), pd.DataFrame(_rows(scores), dtype=object))
    if "lesions" in scores:
        write_table(lesions, pd.DataFrame(scores["lesions"], columns=["case", "label", *ROW], dtype=object))
    if "calibration" in scores:
        figure = plot_calibration(scores["calibration"]["reliability"])
        with finished_file(diagram) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")
    write_json(file, scores)


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


def relative_difference(found: float, true: float) -> float | None:
    """|found - true| / true; 0 if both are 0, and None if only ``true`` is 0."""
    if true:
        return abs(found - true) / true
    return None if found else 0.0


def _overall(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        "relative_volume_difference_pooled": relative_difference(totals["volume_ml"], totals["reference_ml"]),
        **totals,
        **(pooled(cases) if COUNTS[0] in cases[0] else {}),
    }


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of ``scores.csv``; a cell without a value is empty."""
    rows = [
        {"case": case, "label": label, **line}
        for case, labels in scores["cases"].items()
        for label, line in labels.items()
    ]
    columns = rows[0].keys()
    scored = [name for name in (*_AGREEMENT, "relative_volume_difference", *QUALITIES) if name in columns]
    counted = [name for name in (*_TOTALS, *COUNTS) if name in columns]
    means = {"mean of all cases": "", "mean of cases with the label": "_with", "all cases as one volume": "_pooled"}
    for title, suffix in means.items():
        for label, line in scores["overall"].items():
            row = {name: line.get(name + suffix) for name in scored}
            totals = {name: line[name] for name in counted} if suffix == "_pooled" else {}
            rows.append({"case": title, "label": label, **row, **totals})
    return rows
