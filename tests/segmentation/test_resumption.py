"""Trainings that are stopped at unusual moments are continued."""

import shutil

import pytest

from attn3d.segmentation import Interrupted, callbacks, cross_validate, train, training
from tests.segmentation.runs import SMALL


def test_a_half_trained_fold_is_continued(data, tmp_path, monkeypatch):
    """The same command ends with the weights of a training without the interruption."""
    settings = SMALL | {"epochs": 2, "validate_every": 1}
    whole = cross_validate(data, out=tmp_path / "whole", folds=2, **settings)
    write_checkpoint, written = callbacks.Checkpoint.on_train_epoch_end, []

    def stopped(checkpoint, trainer, task):
        write_checkpoint(checkpoint, trainer, task)
        written.append(checkpoint.path)
        if len(written) == 3:  # the first epoch of the second fold
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_train_epoch_end", stopped)
        with pytest.raises(Interrupted, match="run the same command again to continue"):
            cross_validate(data, out=tmp_path / "all", folds=2, **settings)
    assert not (tmp_path / "all" / "fold_1" / "model.safetensors").exists()
    again = cross_validate(data, out=tmp_path / "all", folds=2, **settings)
    assert again.scores == whole.scores
    for one, other in zip(again.runs, whole.runs, strict=True):
        assert one.weights.read_bytes() == other.weights.read_bytes()


def test_a_training_stopped_while_scoring_is_not_trained_again(data, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict_held_out", stopped)
        with pytest.raises(Interrupted):
            train(data, out=tmp_path / "run", **SMALL | {"epochs": 1, "validate_every": 1})
    weights = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(training.Trainer, "fit", None)
    run = train(out=tmp_path / "run", resume=True, quiet=True)
    assert run.finished
    assert run.weights.stat().st_mtime_ns == weights


def test_moved_data_are_compared_only_with_prepared_cases(data, tmp_path, monkeypatch):
    """A training may have been stopped before its cases were prepared."""
    moved, compared, write = shutil.copytree(data, tmp_path / "moved"), [], training.PreparedCase.write

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "fit", stopped)
        with pytest.raises(Interrupted):
            train(data, out=tmp_path / "run", **SMALL | {"epochs": 1})

    def watched(case, *given, same=False):
        compared.append(same)
        return write(case, *given, same=same)

    monkeypatch.setattr(training.PreparedCase, "write", watched)
    assert train(moved, out=tmp_path / "run", resume=True, quiet=True).finished
    assert not any(compared)
