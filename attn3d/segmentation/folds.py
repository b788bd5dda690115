"""Cross-validation (``train --folds 5``): a run for each fold, and the scores of all held-out cases."""

from pathlib import Path
from typing import Any, NamedTuple

from sklearn.model_selection import KFold

from attn3d.arguments import of_python
from attn3d.segmentation.datasets import find_dataset, named_splits, read_fold, read_splits
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import read_json
from attn3d.segmentation.runs import SPLITS, Run
from attn3d.segmentation.series import series_in, train_or_resume
from attn3d.segmentation.settings import settings_from
from attn3d.segmentation.summaries import summarise, write_scores


class CrossValidation(NamedTuple):
    """The result of a cross-validation.

    Attributes:
        folder: the folder with the runs ``fold_0``, ``fold_1``, ..; `predict` uses it as an ensemble.
        runs: the finished run of each fold.
        scores: the scores of all held-out cases, in the form of `evaluate`.
    """

    folder: Path
    runs: list[Run]
    scores: dict[str, Any]


def cross_validate(
    data: Path | str | None = None,
    *,
    out: Path | str,
    folds: int | Path | str = 5,
    config: Path | str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> CrossValidation:
    """Trains one network per fold. Each case is scored by the network that was trained without it.

    If it was stopped, call it again to continue: finished folds are not trained again.

    Args:
        data: as in `train`; without it, a simulated cohort is written into ``out``. The folder may have been moved
            since the cross-validation began.
        out: the folder of the cross-validation. It gets ``splits.json`` in the form of nnU-Net's
            ``splits_final.json``, the runs ``fold_0``, ``fold_1``, .., and ``scores.csv`` and ``scores.json`` of all
            cases, each from the run that held the case out.
        folds: the number of folds, drawn with the setting ``split_seed``; or a JSON file in the form of nnU-Net's
            ``splits_final.json``.
        config: as in `train`.
        workers: as in `train`.
        quiet: whether to show no progress bars.
        **settings: as in `train`, the same for all folds.

    Raises:
        FileError: when a file cannot be used, or ``out`` has a cross-validation with other settings.
        TypeError: when ``folds`` is neither a number nor a path.
        ValueError: when ``folds`` is below 2 or above the number of cases, a setting is wrong, or ``out`` is in use.
        Interrupted: when it is stopped by Ctrl-C.
    """
    folds = of_python(folds)
    if not isinstance(folds, int | str | Path):
        raise TypeError(f"`folds` must be the number of folds or a JSON file of splits, got {folds!r}")
    out, chosen = Path(out), settings_from(config, settings)
    asked: dict[str, Any] = {"folds": folds if isinstance(folds, int) else read_splits(folds)}
    asked |= {"settings": chosen.model_dump(mode="json")}
    with series_in(out, data, asked, lambda folder: _splits(folder, folds, chosen.split_seed), quiet) as folder:
        runs = []
        for fold in range(len(read_splits(out / SPLITS))):
            if not quiet:
                print(f"fold {fold}")
            options = {"config": config, "folds": out / SPLITS, "fold": fold, **settings}
            runs.append(train_or_resume(folder, out / f"fold_{fold}", workers, quiet, **options))
        scored = [read_json(run.scores, "cases", "failed", "tolerance_mm") for run in runs]
        cases = {name: case for one in scored for name, case in one["cases"].items()}
        failed = {path: problem for one in scored for path, problem in one["failed"].items()}
        first, tolerance = runs[0].config, scored[0]["tolerance_mm"]
        scores = summarise(dict(sorted(cases.items())), first.labels, tolerance, failed, first.simulated)
        write_scores(out, scores)
    return CrossValidation(out, runs, scores)


def _splits(data: Path | str, folds: int | Path | str, seed: int) -> list[Any]:
    """The names of the training and validation cases of each fold. A given file is checked."""
    cases = sorted(find_dataset(data, labelled=True).cases, key=lambda case: case.name)
    if isinstance(folds, int):
        if not 2 <= folds <= len(cases):
            raise ValueError(f"`folds` must be from 2 to the number of cases, {len(cases)}, got {folds}")
        parts = KFold(folds, shuffle=True, random_state=seed).split(cases)
        return named_splits(([cases[one] for one in train], [cases[one] for one in held]) for train, held in parts)
    splits, held_out = read_splits(folds), dict[str, int]()
    for fold in range(len(splits)):
        for case in read_fold(folds, fold, cases)[1]:  # a case has one score
            if (other := held_out.setdefault(case.name, fold)) != fold:
                raise FileError(folds, f"holds out {case.name!r} in fold {other} and in fold {fold}; hold it out once")
    return splits
