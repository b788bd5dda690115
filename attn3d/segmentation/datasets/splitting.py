"""Which cases train and which are held out."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.writing import read_json

Split = tuple[list[Case], list[Case]]


def split_cases(cases: Sequence[Case], held_out: float = 0.2, seed: int = 0, validation: Collection[str] = ()) -> Split:
    """Draws the cases that are held out; the same for the same names, seed and fraction, in whatever order.

    Args:
        cases: from `find_dataset`.
        held_out: the fraction to validate on; at least one case is on either side.
        seed: of the draw.
        validation: names of the cases to hold out; by default they are drawn.

    Returns:
        The cases to train and to validate on.

    Raises:
        ValueError: when there are fewer than two cases or the fraction is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must be between 0 and 1, got {held_out}")
    if len(cases) < 2:
        raise ValueError(f"`cases` must be at least 2, one to train and one to validate, got {len(cases)}")
    if validation:
        training = [case for case in cases if case.name not in validation]
        if not training:
            raise ValueError(f"`validation` names all of the {len(cases)} cases; leave one to train")
        return training, [case for case in cases if case.name in validation]
    count = min(max(round(held_out * len(cases)), 1), len(cases) - 1)
    ordered = sorted(cases, key=lambda case: case.name)
    chosen = set(np.random.default_rng(seed).permutation(len(ordered))[:count].tolist())
    training = [case for index, case in enumerate(ordered) if index not in chosen]
    return training, [ordered[index] for index in sorted(chosen)]


def read_splits(path: Path | str) -> list[Any]:
    """The splits in a file such as nnU-Net's ``splits_final.json``, one for each fold.

    Raises:
        FileError: when it cannot be read, or is no list.
    """
    splits = read_json(path)
    if not isinstance(splits, list) or not splits:
        raise FileError(path, "must be a list with a split for each fold, as nnU-Net's splits_final.json")
    return splits


def read_fold(path: Path | str, fold: int, cases: Sequence[Case]) -> Split:
    """The cases to train and to validate on in one of several folds, as in nnU-Net's ``splits_final.json``.

    Args:
        path: a JSON list of ``{"train": [names], "val": [names]}``.
        fold: which, counted from 0.
        cases: from `find_dataset`.

    Raises:
        FileError: when the file is of another form, has no such fold, names a case that is not there or in both
            parts.
    """
    folds = read_splits(path)
    if not 0 <= fold < len(folds):
        raise FileError(path, f"has the folds 0 to {len(folds) - 1}, got {fold}")
    known = {case.name: case for case in cases}
    parts = []
    for part in ("train", "val"):
        names = folds[fold].get(part) if isinstance(folds[fold], dict) else None
        if not isinstance(names, list) or not names:
            raise FileError(path, f"fold {fold} must name cases in `train` and in `val`")
        if unknown := [name for name in names if name not in known]:
            raise FileError(path, f"fold {fold} names {unknown[0]!r}, which is no case; there are {len(known)}")
        parts.append(names)
    if both := sorted(set(parts[0]) & set(parts[1])):
        raise FileError(path, f"fold {fold} has {both[0]!r} both in `train` and in `val`")
    training, validation = ([known[name] for name in names] for names in parts)
    return training, validation
