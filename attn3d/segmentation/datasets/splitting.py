"""Splits cases into training and validation."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attn3d.arguments import natural_number, nonnegative_number
from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import read_json

Split = tuple[list[Case], list[Case]]


def split_cases(cases: Sequence[Case], held_out: float = 0.2, seed: int = 0, validation: Collection[str] = ()) -> Split:
    """Draws the cases to hold out. The result depends on their names, the seed and the fraction, not on their order.

    Args:
        cases: from `find_dataset`.
        held_out: fraction of the cases for validation; each part has at least one case.
        seed: seed of the draw.
        validation: names of the cases to hold out; by default they are drawn.

    Returns:
        The training cases and the validation cases.

    Raises:
        TypeError: when the fraction is not a number.
        ValueError: when there are fewer than two cases, the fraction is not between 0 and 1, or ``validation`` names
            all cases or an unknown one.
    """
    if not 0 < nonnegative_number("held_out", held_out) < 1:
        raise ValueError(f"`held_out` must be between 0 and 1, got {held_out}")
    if len(cases) < 2:
        raise ValueError(f"`cases` must be at least 2, one for training and one for validation, got {len(cases)}")
    if validation:
        if unknown := sorted(set(validation) - {case.name for case in cases}):
            raise ValueError(f"`validation` must name some of the {len(cases)} cases, got {unknown[0]!r}")
        training = [case for case in cases if case.name not in validation]
        if not training:
            raise ValueError(f"`validation` names all {len(cases)} cases; leave at least one for training")
        return training, [case for case in cases if case.name in validation]
    count = min(max(round(held_out * len(cases)), 1), len(cases) - 1)
    ordered = sorted(cases, key=lambda case: case.name)
    chosen = set(np.random.default_rng(seed).permutation(len(ordered))[:count].tolist())
    training = [case for index, case in enumerate(ordered) if index not in chosen]
    return training, [ordered[index] for index in sorted(chosen)]


def read_splits(path: Path | str) -> list[Any]:
    """Reads the splits of a file in the form of nnU-Net's ``splits_final.json``, one for each fold."""
    splits = read_json(
        path, missing="does not exist; give the number of folds, from 2, or a file with a split for each"
    )
    if not isinstance(splits, list) or not splits:
        raise FileError(path, "must be a list with a split for each fold, such as nnU-Net's splits_final.json")
    return splits


def named_splits(splits: Iterable[Split]) -> list[dict[str, list[str]]]:
    """The names of the training and validation cases of each fold, in the form of ``splits_final.json``."""
    return [{"train": [case.name for case in train], "val": [case.name for case in held]} for train, held in splits]


def read_fold(path: Path | str, fold: int, cases: Sequence[Case]) -> Split:
    """Reads the training and validation cases of a fold, from 0, of a file such as nnU-Net's ``splits_final.json``.

    It is a JSON list of ``{"train": [names], "val": [names]}``.

    Raises:
        FileError: when the file has another form or no such fold, or names an unknown case, or a case twice.
        TypeError, ValueError: when ``fold`` is not an integer, or negative.
    """
    folds = read_splits(path)
    if natural_number("fold", fold) >= len(folds):
        raise FileError(path, f"has the folds 0 to {len(folds) - 1}, got {fold}")
    known = {case.name: case for case in cases}
    parts = []
    for part in ("train", "val"):
        names = folds[fold].get(part) if isinstance(folds[fold], dict) else None
        if not isinstance(names, list) or not names:
            raise FileError(path, f"fold {fold} must name cases in `train` and in `val`")
        if unknown := [name for name in names if not (isinstance(name, str) and name in known)]:
            raise FileError(
                path, f"fold {fold} has the unknown case {unknown[0]!r}; the data set has {len(known)} cases"
            )
        parts.append(names)
    if twice := [name for name, times in Counter(parts[0] + parts[1]).items() if times > 1]:
        raise FileError(path, f"fold {fold} has {twice[0]!r} twice; name a case once, in `train` or in `val`")
    training, validation = ([known[name] for name in names] for names in parts)
    return training, validation
