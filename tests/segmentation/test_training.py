"""From a folder of scans to a run folder: its content, exact resuming, and errors."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attn3d import segmentation
from attn3d.segmentation import FileError, Interrupted, Run, simulate, train, training
from attn3d.segmentation.callbacks import Epochs
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.io.locks import locked
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.settings import settings_from
from attn3d.segmentation.task import SegmentationTask
from tests.segmentation.runs import SMALL, change_json


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, out=tmp_path_factory.mktemp("runs") / "run", **SMALL)


def test_a_run_has_its_settings_metrics_and_scores(run, data):
    config = json.loads((run.folder / "config.json").read_text())
    assert config["data"] == str(data)
    assert config["attention"] == ["se", {"reduction": 1}]
    assert config["versions"]["torch"] == version("torch")
    assert Run.open(run.folder).config == run.config
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["dice"]) for row in rows] == [False, True, False]
    split = json.loads((run.folder / "split.json").read_text())
    assert len(split["training"]) == 3
    assert len(split["validation"]) == 1
    (case,) = split["validation"]
    scores = json.loads(run.scores.read_text())
    assert list(scores["cases"]) == [case]
    assert nib.load(run.folder / "validation" / f"{case}.nii.gz").get_data_dtype() == np.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_and_resumed_training_ends_with_the_same_weights(workers, run, data, tmp_path):
    """After SIGKILL and --resume, the weights are bitwise those of an uninterrupted training."""
    out = tmp_path / "run"
    settings = {name: value for name, value in SMALL.items() if name != "epochs"} | {"epochs": 3}
    code = (
        "import json, sys; from attn3d.segmentation import train;"
        "train(sys.argv[1], out=sys.argv[2], **json.loads(sys.argv[3]))"
    )
    # A wait in every epoch, so that there is time to kill the process.
    slow = "import time; from attn3d.segmentation.callbacks import Epochs; start = Epochs.on_train_epoch_start;"
    slow += "Epochs.on_train_epoch_start = lambda *a: (time.sleep(3 * bool(a[0].rows)), start(*a));"
    command = [sys.executable, "-c", slow + code, str(data), str(out), json.dumps(settings)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.csv").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    assert not (out / "model.safetensors").exists()
    again = train(out=out, resume=True, workers=workers, quiet=True)
    expected, found = load_file(run.weights), load_file(again.weights)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[row["loss"] for row in csv.DictReader((one.folder / "metrics.csv").open())] for one in (run, again)]
    assert losses[0] == losses[1]


def test_a_training_stopped_by_the_user_prints_how_to_resume(data, tmp_path, monkeypatch):
    step = SegmentationTask.training_step

    def interrupted(task, batch, index):
        if task.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        return step(task, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", interrupted)
    out = tmp_path / "my run"
    with pytest.raises(Interrupted, match=f"^stopped in epoch 2; continue with `attn3d train --resume --out '{out}'`$"):
        train(data, out=out, **SMALL)
    assert (out / "last.ckpt").exists()
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize("place", ["prepare_data", "on_train_epoch_end", "predict_held_out"])
def test_a_training_stopped_at_any_stage_can_be_resumed(place, data, tmp_path, monkeypatch):
    """Stopped during preparation, between two epochs, and after the last epoch."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    of = {"prepare_data": PatchData, "on_train_epoch_end": Epochs, "predict_held_out": training}[place]
    with monkeypatch.context() as patch:
        patch.setattr(of, place, stop)
        with pytest.raises(Interrupted, match=f"continue with `attn3d train --resume --out {tmp_path / 'run'}`"):
            train(data, out=tmp_path / "run", **SMALL | {"epochs": 1})
    assert train(out=tmp_path / "run", resume=True, quiet=True).finished
    assert not [path.name for path in (tmp_path / "run").rglob(".*")]


def copied(run, data, folder, *without):
    """Copies a run without some of its files."""
    shutil.copytree(run.folder, folder)
    for name in without:
        (folder / name).unlink()
    return folder


def test_moved_data_are_found_with_the_option(run, data, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    again = copied(run, data, tmp_path / "run", "model.safetensors")
    change_json(again / "config.json", data=str(tmp_path / "gone"))
    with pytest.raises(
        FileError, match=r"gone: does not exist; .*run was trained on it, give its new folder \(--data\)"
    ):
        train(out=again, resume=True, quiet=True)
    assert train(moved, out=again, resume=True, quiet=True).finished
    assert segmentation.report(again).exists(), "the run keeps the new folder"
    for path in (moved / "labels").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine), path)
    with pytest.raises(
        FileError, match=r"has labels 1 label 1, but .* was trained on labels 1 label 1, 2 label 2, 3 label 3; give"
    ):
        Run.open(again, moved).dataset()


@pytest.mark.parametrize("part", ["images", "labels", None])
def test_other_data_under_the_same_names_are_refused(part, run, data, tmp_path, caplog):
    """Voxels and labels count, not the path or the time of the files."""
    moved = shutil.copytree(data, tmp_path / "moved")
    again = copied(run, data, tmp_path / "run", "model.safetensors")
    before = (again / "config.json").read_text()
    for path in moved.glob("*/case2.nii.gz"):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        if path.parent.name == part:
            voxels[8:16] = voxels.max()
        nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)
    if part is None:
        assert train(moved, out=again, resume=True, quiet=True).config.data == str(moved)
        assert Run.open(again).config.data == str(moved)
        assert "prepared again" not in caplog.text
        return
    with pytest.raises(FileError, match=f"moved/images/case2.nii.gz: its {part[:-1]} is not that of 'case2' in the"):
        train(moved, out=again, resume=True, quiet=True)
    assert (again / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b""), "is damaged, or is not a checkpoint; remove it"),
        (lambda path: path.write_bytes(b"text"), "is damaged, or is not a checkpoint; remove it"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is damaged, or is not a checkpoint; remove it"),
        (lambda path: change_json(path.with_name("config.json"), width=8), "does not fit the network of config.json"),
    ],
)
def test_an_invalid_checkpoint_is_refused(change, message, run, data, tmp_path):
    again = copied(run, data, tmp_path / "run", "model.safetensors")
    change(again / "last.ckpt")
    with pytest.raises(FileError, match=f"last.ckpt: {message}"):
        train(out=again, resume=True, quiet=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"width": "a"},
        {"strides": [[0, 1, 1]]},
        {"labels": 3},
        {"learning_rate": None},
        {"network": "Unet"},
        {"patch_size": 16},
    ],
)
def test_an_invalid_edited_config_is_refused(settings, run, data, tmp_path):
    again = copied(run, data, tmp_path / "run")
    change_json(again / "config.json", **settings)
    with pytest.raises(FileError, match=r"config\.json: has an invalid value"):
        Run.open(again)


@pytest.mark.parametrize("content", ["{}", '{"training": []}', '{"training": 3, "validation": []}', "[]", "{"])
def test_an_invalid_split_is_refused(content, run, data, tmp_path):
    again = copied(run, data, tmp_path / "run", "model.safetensors")
    (again / "split.json").write_text(content)
    with pytest.raises(FileError, match=r"split.json: (has no '|its '\w+' must be a list|is not valid JSON)"):
        train(out=again, resume=True, quiet=True)


def test_a_learning_rate_that_yaml_reads_as_text(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("learning_rate: 1e-3")
    assert settings_from(file, {}).learning_rate == 1e-3


def test_a_folder_in_use_by_another_process_is_refused(data, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"):
        train(data, out=tmp_path / "run", **SMALL)


def test_a_training_killed_before_its_first_files_starts_again(data, tmp_path):
    """A folder with other files is refused."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "split.json").write_text("{")
    (out / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"already has 'notes.txt'; move it, or give a new folder"):
        train(data, out=out, **SMALL)
    (out / "notes.txt").unlink()
    (out / ".lock").write_text("process 1 on elsewhere")
    (out / ".unfinished-1@elsewhere@config.json").touch()
    assert train(data, out=out, **SMALL | {"epochs": 1}).finished
    assert not [path.name for path in out.rglob(".*")]


def test_the_umask_sets_the_permissions_of_the_weights(run):
    umask = os.umask(0o022)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (run.weights, run.checkpoint)} == {0o666 & ~umask}


@pytest.mark.nightly
def test_two_ranks_train_one_network(data, tmp_path):
    """With torchrun and gloo: one checkpoint and one set of weights; one rank validates the single held-out case."""
    config = tmp_path / "config.json"
    settings = {name: value for name, value in SMALL.items() if name not in ("quiet", "epochs")}
    config.write_text(json.dumps(settings | {"validate_every": 1}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "attn3d"]
    command += ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--epochs", "1", "--quiet"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("learning_rate") == 1, "the first rank logs the epoch"
    again = Run.open(tmp_path / "run")
    assert again.finished
    rows = list(csv.DictReader((again.folder / "metrics.csv").open()))
    assert len(rows) == 1
    assert 0 <= float(rows[0]["dice"]) <= 1
    assert int(rows[0]["step"]) == 2, "three cases with two patches each, in batches of two on two ranks"


def test_deep_supervision_and_spacing_per_axis(data, tmp_path):
    """Training uses several outputs of DynUNet, and prediction the finest."""
    settings = SMALL | {"network": "DynUNet", "epochs": 1, "at": ("skip",), "strides": [(2, 2, 1), (2, 2, 2)]}
    again = train(data, out=tmp_path / "run", **settings, kernels=[(3, 3, 1), (3, 3, 3), (3, 3, 3)])
    assert again.finished
    assert again.network().training is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "Unet"}, "did you mean 'UNet'"),
        ({"attention": "CBAM"}, "`attention` must be a registered mechanism, got 'CBAM'; did you mean 'cbam'"),
        ({"at": ("encoders",)}, "encoder"),
        ({"epochs": 0}, "`epochs` must be greater than or equal to 1, got 0"),
        ({"patch_size": (16, 16, 9)}, r"`patch_size` must be multiples of .* try \(16, 16, 10\)"),
        ({"patch_size": (16, 16)}, r"`patch_size` must be three positive whole numbers, got \(16, 16\)"),
        ({"spacing": (1.0, 0.0, 1.0)}, "`spacing` must be three positive numbers"),
        ({"windows": [[40, 80]], "held_out": 1.5}, "`held_out` must be less than 1, got 1.5"),
        ({"patch_size": 16}, "`patch_size` must be three positive whole numbers, got 16"),
        ({"strides": [[0, 1, 1]]}, "`strides` must be a list with three whole numbers of at least 1 per entry, got"),
        ({"learning_rate": 1e38}, "`learning_rate` must be less than 1000000000, got 1e.38"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a valid number, got 'fast'"),
        ({"windows": [40, 80]}, "`windows` must be a list of pairs, level and width in HU"),
        ({"at": "skip"}, "`at` must be a list of kinds of site, got 'skip'"),
        ({"epochs": None, "minutes": 0}, "`minutes` must be greater than 0, got 0"),
        ({"minutes": 5}, "`epochs` and `minutes` cannot both be set, got 3 and 5"),
        ({"mirror": [0, 0]}, r"`mirror` must be a list of axes from 0 to 2, each at most once, got \[0, 0\]"),
        ({"optimizer": "adam"}, "`optimizer` must be 'adamw' or 'sgd', got 'adam'"),
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"workers": -1}, "`workers` must be at least 0, got -1"),
        ({"network": "BasicUNet"}, r"`patch_size` \(16, 16, 16\) becomes a single voxel in a BasicUNet"),
        ({"patch_size": (4, 4, 4)}, r"`strides` of a UNet must have 1 or more entries, got \(\)"),
        ({"network": "DynUNet", "patch_size": (8, 8, 8)}, r"`strides` of a DynUNet must have 2 or more entries, got"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(settings, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(data, out=tmp_path / "run", **(SMALL | settings))
    assert not (tmp_path / "run").exists()


def test_a_patch_may_become_a_single_voxel_in_a_network_with_group_norm(data, tmp_path):
    assert train(data, out=tmp_path / "run", **SMALL | {"network": "SegResNet", "patch_size": (8, 8, 8)}).finished


def test_settings_can_be_numbers_and_arrays_of_numpy():
    given = {"epochs": np.int64(2), "patch_size": np.array([16, 16, 8]), "strides": np.ones((1, 3), int)}
    assert segmentation.Settings(**given).model_dump(include={*given}) == {
        "epochs": 2,
        "patch_size": (16, 16, 8),
        "strides": ((1, 1, 1),),
    }


def test_a_folder_with_a_run_is_not_changed(run, data):
    before = run.weights.read_bytes()
    with pytest.raises(ValueError, match=r"already has '.*'; resume the training in it \(--resume\), or give"):
        train(data, out=run.folder, **SMALL)
    assert run.weights.read_bytes() == before


def test_the_labels_of_a_run_are_read_without_its_mechanism(run, tmp_path):
    """A mechanism of one's own need not be registered where predictions are scored."""
    shutil.copy(run.folder / "config.json", tmp_path)
    change_json(tmp_path / "config.json", attention="mine")
    assert segmentation.read_labels(tmp_path) == run.config.labels
    assert segmentation.read_labels(tmp_path / "config.json") == run.config.labels
    with pytest.raises(ValueError, match="`attention` must be a registered mechanism, got 'mine'"):
        Run.open(tmp_path).new_network()


def test_a_training_stopped_before_its_first_files_cannot_be_resumed(data, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(training, "take_fingerprint", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(data, out=out, **SMALL)
    for folder in (out, tmp_path / "nothing"):
        with pytest.raises(FileError, match=f"{folder}: has no training to resume; start it again without --resume"):
            train(out=folder, resume=True)
    assert train(data, out=out, **(SMALL | {"epochs": 1})).finished


def test_a_finished_run_is_not_trained_again(run):
    before = run.weights.stat().st_mtime_ns
    assert train(out=run.folder, resume=True, quiet=True).finished
    for given in ({"epochs": 50}, {"config": "settings.yaml"}, {"folds": "folds.json"}):
        with pytest.raises(
            ValueError, match=f"`resume` continues with the settings in `out`; leave out {next(iter(given))}"
        ):
            train(out=run.folder, resume=True, **given)
    assert run.weights.stat().st_mtime_ns == before


def test_predictions_of_the_run_are_in_the_folder(run):
    found = segmentation.predict(run.folder, run.cases("validation")[0].images[0], run.folder / "again", quiet=True)
    ((name, path),) = found.written.items()
    same = np.asarray(nib.load(path).dataobj)
    assert np.array_equal(same, np.asarray(nib.load(run.folder / "validation" / f"{name}.nii.gz").dataobj))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- epochs", "must be a mapping of settings, got list"),
        ("epoch: 3", "has an unknown setting 'epoch'; did you mean 'epochs'"),
        ("1: 3", "has an unknown setting '1'"),
        ("attention: 3", "`attention` must be a name or .*, got 3"),
        ("epochs: [", "is neither YAML nor JSON"),
        (5000 * "[", "is neither YAML nor JSON: maximum recursion"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_files_that_are_not_settings_are_refused(content, message, data, tmp_path):
    file = tmp_path / "config.yaml"
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(FileError, match=f"config.yaml: {message}"):
        train(data, out=tmp_path / "run", config=file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "is not valid JSON"),
        (lambda text: json.dumps(json.loads(text) | {"colour": "blue"}), "has other settings .*'colour'; train again"),
        (lambda text: json.dumps({"format": 0}), "does not have format 3"),
    ],
)
def test_settings_of_another_version_are_refused(change, message, run, tmp_path):
    (tmp_path / "config.json").write_text(change((run.folder / "config.json").read_text()))
    with pytest.raises(FileError, match=f"config.json: {message}"):
        Run.open(tmp_path)


def test_weights_of_another_network_are_refused(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    change_json(tmp_path / "run" / "config.json", width=2 * run.config.width)
    with pytest.raises(FileError, match=r"model.safetensors: does not fit the network of config.json: .*size mismatch"):
        Run.open(tmp_path / "run").network()


def test_a_missing_case_is_named(run, data, tmp_path):
    lost = json.loads((run.folder / "split.json").read_text())["validation"][0]
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "images" / f"{lost}.nii.gz").unlink()
    (tmp_path / "data" / "labels" / f"{lost}.nii.gz").unlink()
    dataset = segmentation.datasets.find_dataset(tmp_path / "data", labelled=True)
    with pytest.raises(FileError, match=f"has no case '{lost}', which is in the split"):
        run.cases("validation", dataset)


def test_files_that_are_left_out_are_named_when_quiet(data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "labels" / "case0.nii.gz").unlink()
    with pytest.raises(ValueError, match="`patch_size`"):
        train(tmp_path / "data", out=tmp_path / "run", **SMALL | {"patch_size": (16, 16, 9)})
    assert "left out: " in caplog.text
    assert "case0.nii.gz: has no label" in caplog.text


class Simulated(Exception):
    pass


def simulated(folder, **_):
    raise Simulated(folder)


def test_without_data_only_a_single_process_simulates_a_cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "simulate", simulated)
    with pytest.raises(Simulated) as raised:
        train(out=tmp_path / "run", quiet=True)
    assert raised.value.args == (tmp_path / "run" / "cohort",)
    monkeypatch.setattr(training, "_is_first_process", lambda: False)
    with pytest.raises(ValueError, match="`data` is required with several processes; write a cohort with `attn3d sim"):
        train(out=tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()


def test_further_processes_use_the_cohort_of_the_first_one(tmp_path, monkeypatch):
    """As those that Lightning starts for further GPUs."""
    simulate(tmp_path / "run" / "cohort", cases=3, quiet=True)
    monkeypatch.setattr(training, "_is_first_process", lambda: False)
    monkeypatch.setattr(training, "_train", lambda run, dataset, *_: asked.append(dataset.folder))
    asked = []
    train(out=tmp_path / "run", quiet=True)
    assert asked == [tmp_path / "run" / "cohort"]


def test_unusable_data_are_refused(data, tmp_path, monkeypatch):
    dataset = find_dataset(data, labelled=True)
    *others, last = dataset.cases
    more = replace(last, images=last.images * 2)
    for change, message in (
        ({"labels": Labels.of({})}, "has no names of labels; add a dataset.json"),
        ({"cases": (*others, more)}, f"{last.images[0]}: its case has 2 images, but others have 1"),
    ):
        monkeypatch.setattr(training, "find_dataset", lambda *_, change=change, **__: replace(dataset, **change))
        with pytest.raises(FileError, match=message):
            train(data, out=tmp_path / "run", **SMALL)
        assert not (tmp_path / "run" / "config.json").exists()


def test_systemexit_within_a_training_is_not_an_interruption(data, tmp_path, monkeypatch):
    """Lightning raises SystemExit after Ctrl-C. Any other SystemExit passes, and the signal handler is restored."""

    def exits(*_, **__):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(3)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(training.Trainer, "fit", exits)
    try:
        with pytest.raises(SystemExit) as stopped:
            train(data, out=tmp_path / "run", **SMALL)
        assert stopped.value.code == 3
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)
