"""Cross-validation: every case is held out once, it resumes, and its folder is an ensemble to predict with."""

import json
import shutil

import numpy as np
import pytest
import torch

from attn3d.segmentation import FileError, Interrupted, cross_validate, predict, series
from attn3d.segmentation import folds as cross_validation
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.runs import Run, how_to_finish
from tests.segmentation.runs import SMALL

SETTINGS = SMALL | {"epochs": 1, "validate_every": 1}
NAMES = ["case0", "case1", "case2", "case3"]


@pytest.fixture(scope="module")
def folds(data, tmp_path_factory):
    return cross_validate(data, out=tmp_path_factory.mktemp("folds") / "all", folds=2, **SETTINGS)


def test_every_case_is_scored_by_the_run_that_held_it_out(folds):
    splits = json.loads((folds.folder / "splits.json").read_text())
    assert sorted(name for split in splits for name in split["val"]) == NAMES
    for run, split in zip(folds.runs, splits, strict=True):
        assert sorted(split["train"] + split["val"]) == NAMES
        assert [case.name for case in run.cases("validation")] == split["val"]
        own = json.loads(run.scores.read_text())["cases"]
        assert {name: folds.scores["cases"][name] for name in split["val"]} == own
    assert list(folds.scores["cases"]) == NAMES
    label = next(iter(folds.scores["labels"]))
    dice = [case[label]["dice"] for case in folds.scores["cases"].values()]
    assert folds.scores["overall"][label]["dice"] == pytest.approx(np.mean(dice))
    assert json.loads((folds.folder / "scores.json").read_text()) == folds.scores


def test_finished_folds_are_not_trained_again(folds, data, tmp_path):
    before = [run.weights.stat().st_mtime_ns for run in folds.runs]
    again = cross_validate(data, out=folds.folder, folds=2, **SETTINGS)
    assert [run.weights.stat().st_mtime_ns for run in again.runs] == before
    assert again.scores == folds.scores
    with pytest.raises(FileError, match="has other settings"):
        cross_validate(data, out=folds.folder, folds=3, **SETTINGS)
    other = shutil.copytree(data, tmp_path / "other")
    with pytest.raises(FileError, match="has other settings"):
        cross_validate(other, out=folds.folder, folds=2, **SETTINGS)


def test_a_comparison_does_not_continue_a_cross_validation(data, tmp_path):
    asked, out = {"settings": {"epochs": 1}}, tmp_path / "all"
    with series.series_in(out, data, asked | {"folds": 2}, lambda _: [], True):
        (out / "fold_0").mkdir()
        (out / "fold_0" / "config.json").touch()
    with (
        pytest.raises(FileError, match=r"settings\.json: has other settings \(folds\); give another --out"),
        series.series_in(out, data, asked, lambda _: [], True),
    ):
        pass


def test_it_can_be_resumed(data, tmp_path, monkeypatch):
    trained = []

    def stopped(*_, out, **__):
        trained.append(out.name)
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(series, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(data, out=tmp_path / "all", folds=3, **SETTINGS)
    assert trained == ["fold_0", "fold_1"]
    (tmp_path / "all" / "fold_0").mkdir()
    with pytest.raises(FileError, match=r"fold_1: does not exist; .* the same `attn3d train --folds` command"):
        predict(tmp_path / "all", data, tmp_path / "out")
    splits = (tmp_path / "all" / "splits.json").read_text()
    monkeypatch.undo()
    found = cross_validate(data, out=tmp_path / "all", folds=3, **SETTINGS)
    assert [run.folder.name for run in found.runs] == ["fold_0", "fold_1", "fold_2"]
    assert (tmp_path / "all" / "splits.json").read_text() == splits


def test_an_interrupted_fold_is_continued_by_the_same_command(data, tmp_path, monkeypatch):
    """On one device, since each of several processes would go through all folds."""
    options = []

    def stopped(*_, **given):
        options.append(given)
        raise Interrupted("stopped; continue with --resume --out fold_0")

    monkeypatch.setattr(series, "train", stopped)
    with pytest.raises(Interrupted, match=r"^stopped; run the same command again to continue$"):
        cross_validate(data, out=tmp_path / "all", folds=2, **SETTINGS)
    assert [given["devices"] for given in options] == [1]


def test_a_changed_file_of_settings_is_refused(folds, data, tmp_path):
    """Settings are compared, not the name of their file; those of the command may be in the file instead."""
    written = {name: value for name, value in SETTINGS.items() if name != "quiet"}
    (tmp_path / "settings.json").write_text(json.dumps(written))
    again = cross_validate(data, out=folds.folder, folds=2, config=tmp_path / "settings.json", quiet=True)
    assert again.scores == folds.scores
    (tmp_path / "settings.json").write_text(json.dumps(written | {"learning_rate": 1e-4}))
    with pytest.raises(FileError, match="has other settings"):
        cross_validate(data, out=folds.folder, folds=2, config=tmp_path / "settings.json", quiet=True)


def test_the_folder_is_an_ensemble_of_its_runs(folds, data, tmp_path):
    scan = data / "images" / "case0.nii.gz"
    options = {"probabilities": True, "quiet": True}
    together = predict(folds.folder, scan, tmp_path / "together", **options)
    apart = predict([run.folder for run in folds.runs], scan, tmp_path / "apart", **options)
    for name in ("case0.nii.gz", "case0_probabilities.nii.gz"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()
    assert together.volume_ml == apart.volume_ml


def test_given_splits_are_used(data, tmp_path):
    splits = [{"train": NAMES[:2], "val": NAMES[2:]}, {"train": NAMES[1:], "val": NAMES[:1]}]
    (tmp_path / "mine.json").write_text(json.dumps(splits))
    found = cross_validate(data, out=tmp_path / "all", folds=tmp_path / "mine.json", **SETTINGS)
    assert json.loads((tmp_path / "all" / "splits.json").read_text()) == splits
    assert list(found.scores["cases"]) == ["case0", "case2", "case3"]


def test_folds_are_a_number_or_a_file(data, tmp_path):
    with pytest.raises(TypeError, match=r"`folds` must be the number of folds or a JSON file of splits, got 2\.5"):
        cross_validate(data, out=tmp_path / "all", folds=2.5, **SETTINGS)


@pytest.mark.parametrize("folds", [1, 5])
def test_an_impossible_number_of_folds(folds, data, tmp_path):
    with pytest.raises(ValueError, match=f"`folds` must be from 2 to the number of cases, 4, got {folds}"):
        cross_validate(data, out=tmp_path / "all", folds=folds, **SETTINGS)
    assert not (tmp_path / "all").exists()


def test_settings_can_be_changed_after_an_error(data, tmp_path):
    with pytest.raises(ValueError, match="`patch_size` must be multiples of"):
        cross_validate(data, out=tmp_path / "all", folds=2, **SETTINGS | {"patch_size": (16, 16, 9)})
    assert cross_validate(data, out=tmp_path / "all", folds=2, **SETTINGS).runs[0].finished


def test_splits_are_checked_before_the_first_fold_is_trained(data, tmp_path):
    file, out = tmp_path / "mine.json", tmp_path / "all"
    good = {"train": NAMES[:2], "val": NAMES[2:]}
    for bad, message in (
        ({"train": NAMES[1:], "val": ["case9"]}, "fold 1 has the unknown case 'case9'"),
        ({"train": NAMES[:2], "val": NAMES[2:3]}, "holds out 'case2' in fold 0 and in fold 1; hold it out once"),
    ):
        file.write_text(json.dumps([good, bad]))
        with pytest.raises(FileError, match=message):
            cross_validate(data, out=out, folds=file, **SETTINGS)
        assert not out.exists()


def test_changed_splits_are_refused(data, tmp_path):
    file, out = tmp_path / "mine.json", tmp_path / "all"
    file.write_text(json.dumps([{"train": NAMES[:2], "val": NAMES[2:]}]))
    cross_validate(data, out=out, folds=file, **SETTINGS)
    moved = file.rename(tmp_path / "moved.json")
    assert cross_validate(data, out=out, folds=moved, **SETTINGS).runs[0].finished, "the content counts, not the name"
    file.write_text(json.dumps([{"train": NAMES[:3], "val": NAMES[3:]}]))
    with pytest.raises(FileError, match=r"settings\.json: has other settings \(folds\); give another --out"):
        cross_validate(data, out=out, folds=file, **SETTINGS)


def test_invalid_splits(data, tmp_path):
    (tmp_path / "mine.json").write_text('{"train": []}')
    with pytest.raises(FileError, match=r"mine.json: must be a list with a split for each fold"):
        cross_validate(data, out=tmp_path / "all", folds=tmp_path / "mine.json", **SETTINGS)


def test_the_weights_of_the_best_validation_are_kept(data, tmp_path, monkeypatch):
    """The second of three validations is the best; the weights are those of its epoch."""
    from attn3d.segmentation import task, train

    kept, dice = [], iter((0.1, 0.3, 0.2))

    def end(self):
        self.dice = {"dice": next(dice)}
        kept.append({name: value.clone() for name, value in self.trained.state_dict().items()})

    monkeypatch.setattr(task.SegmentationTask, "on_validation_epoch_end", end)
    run = train(data, out=tmp_path / "run", **SMALL | {"validate_every": 1})
    best, last = run.network(best=True).state_dict(), run.network().state_dict()
    assert all(torch.equal(best[name], value) for name, value in kept[1].items())
    assert any(not torch.equal(best[name], value) for name, value in last.items())
    run.best_weights.unlink()
    with pytest.raises(FileError, match="the training was never validated"):
        Run.open(run.folder).network(best=True)


def test_without_data_a_cohort_is_simulated(data, tmp_path, monkeypatch, capsys):
    asked = []

    def stopped(*arguments, **_):
        asked.append(arguments[:2])
        raise KeyboardInterrupt

    def simulated(folder, **_):
        asked.append(folder)
        return find_dataset(data)

    monkeypatch.setattr(series, "simulate", simulated)
    monkeypatch.setattr(cross_validation, "train_or_resume", stopped)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(out=tmp_path / "all", folds=2, **SETTINGS | {"quiet": False})
    assert asked == [tmp_path / "all" / "cohort", (data, tmp_path / "all" / "fold_0")]
    assert capsys.readouterr().out == "fold 0\n"
    splits = json.loads((tmp_path / "all" / "splits.json").read_text())
    assert sorted(name for split in splits for name in split["val"]) == NAMES


def test_the_command_that_finishes_a_run(tmp_path):
    alone = tmp_path / "my run"
    command = f"finish the training with `attn3d train --resume --out '{alone}'`"
    assert how_to_finish(alone) == command
    (tmp_path / "splits.json").touch()  # of the user
    assert how_to_finish(alone) == command
    (tmp_path / "settings.json").touch()
    assert "`attn3d train --folds`" in how_to_finish(tmp_path / "fold_1")
    assert "`attn3d compare`" in how_to_finish(tmp_path / "eca-1")
