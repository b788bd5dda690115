"""The training procedure: its budget, its optimizer and the weights that it keeps."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from attn3d.segmentation import SegmentationTask, callbacks, train
from tests.segmentation.runs import SMALL


def rows(run):
    return list(csv.DictReader((run.folder / "metrics.csv").open()))


MINUTES = {name: value for name, value in SMALL.items() if name != "epochs"} | {"minutes": 4}


def test_a_budget_of_minutes_ends_with_a_validation_and_a_low_learning_rate(recorded, data, tmp_path):
    rates, validated = recorded
    run = train(data, out=tmp_path / "run", **MINUTES)
    assert run.finished
    assert run.config.epochs is None
    assert rates[0] == pytest.approx(3e-3, rel=0.05)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]
    assert 3 <= len(validated) <= 6
    assert validated[-1] == len(rates), "the last validation must be at the end"
    assert rows(run)[-1]["dice"]
    assert float(rows(run)[-1]["seconds"]) <= 240


def test_minutes_count_from_the_checkpoint(recorded, data, tmp_path, monkeypatch):
    rates, _ = recorded
    write = callbacks.Checkpoint.on_train_epoch_end

    def stopped(checkpoint, trainer, task):
        write(checkpoint, trainer, task)
        if len(rates) >= 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_train_epoch_end", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(data, out=tmp_path / "run", **MINUTES)
    before = len(rates)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["callbacks"]["Minutes"]
    assert 0 < state["time_elapsed"]["train"] < 240
    run = train(out=tmp_path / "run", resume=True, quiet=True)
    assert run.finished
    assert rates[before] == pytest.approx(rates[before - 1], rel=0.1)
    assert rates == sorted(rates, reverse=True)


def test_slow_validations_are_less_frequent():
    clock = callbacks.Minutes(10)
    clock.load_state_dict({"time_elapsed": {"train": 130.0}, "validation": 12.0, "last": 0.0})
    assert clock.used == pytest.approx(130 / (600 - 12))
    clock.on_train_start(None, None)
    trainer = type("Trainer", (), {"strategy": type("S", (), {"broadcast": staticmethod(lambda x: x)})})()
    clock.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.check_val_every_n_epoch > 1, "validations of 12 s may take 5 % of 240 s"
    clock.time_elapsed = lambda: 250.0
    clock.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.check_val_every_n_epoch == 1
    assert not trainer.should_stop


def test_a_short_validation_does_not_raise_the_learning_rate():
    """Time is reserved for the longest validation."""
    clock, used = callbacks.Minutes(10), []
    trainer = type("Trainer", (), {"strategy": type("S", (), {"broadcast": staticmethod(lambda x: x)})})()
    for trained, validated in ((100.0, 30.0), (105.0, 2.0), (110.0, 31.0)):
        seconds = {"train": trained, "validate": validated}
        clock.time_elapsed = lambda stage="train", seconds=seconds: seconds[stage]
        clock.on_validation_end(trainer, None)
        used.append(clock.used)
    assert used == [100 / 570, 105 / 570, 110 / 569]


def test_the_average_of_the_weights_is_kept(data, tmp_path, monkeypatch):
    """Parameters are averaged and buffers copied, as computed by hand."""
    averages = []
    update = SegmentationTask.on_train_batch_end

    def by_hand(task, *arguments):
        if not averages:
            averages.append({name: value.detach().clone() for name, value in task.network.named_parameters()})
        else:
            decay = min(0.9, (1 + task.trainer.global_step) / (10 + task.trainer.global_step))
            for name, value in task.network.named_parameters():
                averages[0][name].mul_(decay).add_(value.detach(), alpha=1 - decay)
        update(task, *arguments)

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", by_hand)
    settings = SMALL | {"ema_decay": 0.9, "optimizer": "sgd", "warmup_steps": 2, "attention": "coord"}
    run = train(data, out=tmp_path / "run", **settings)
    kept = load_file(run.weights)
    for name, value in averages[0].items():
        torch.testing.assert_close(kept[name], value)
    last = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    buffers = [name for name in kept if "running" in name]
    assert buffers, "coordinate attention must have batch norms"
    assert all(torch.equal(kept[name], last[f"network.{name}"]) for name in buffers)
    assert not all(torch.equal(kept[name], last[f"network.{name}"]) for name in averages[0])


def test_an_average_and_dropout_resume_exactly(data, tmp_path, monkeypatch):
    settings = SMALL | {"ema_decay": 0.9, "epochs": 2, "at": ("bottleneck",)}
    settings |= {"attention": ["mhsa", {"num_heads": 2, "dropout": 0.5}]}
    run = train(data, out=tmp_path / "run", **settings)
    write = callbacks.Checkpoint.on_train_epoch_end

    def stopped(checkpoint, trainer, task):
        write(checkpoint, trainer, task)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_train_epoch_end", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(data, out=tmp_path / "again", **settings)
    again = train(out=tmp_path / "again", resume=True, quiet=True)
    assert again.weights.read_bytes() == run.weights.read_bytes()


def test_the_rate_rises_over_the_warm_up(recorded, data, tmp_path):
    rates, _ = recorded
    train(data, out=tmp_path / "run", **SMALL | {"warmup_steps": 4, "learning_rate": 1e-2})
    assert rates[0] == pytest.approx(1e-2 / 4)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_channels_last_changes_the_memory_format_but_not_the_loss(data, tmp_path, monkeypatch):
    seen = []
    step = SegmentationTask.training_step

    def stepped(task, batch, index):
        seen.append(next(task.network.parameters()).is_contiguous(memory_format=torch.channels_last_3d))
        return step(task, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", stepped)
    settings = SMALL | {"epochs": 1, "windows": [[100, 200], [50, 300]], "network": "DynUNet", "attention": "none"}
    settings |= {"strides": [[2, 2, 1], [2, 2, 2]], "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]]}
    losses = {}
    for channels_last in (False, True):
        run = train(data, out=tmp_path / str(channels_last), **settings, channels_last=channels_last)
        losses[channels_last] = float(rows(run)[0]["loss"])
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert seen[0] is False
    assert seen[-1] is True


def test_all_settings_are_saved_in_the_run(data, tmp_path):
    file = tmp_path / "settings.yaml"
    given = {name: value for name, value in SMALL.items() if name != "quiet"} | {"epochs": 1, "mirror": [0, 1]}
    file.write_text(json.dumps(given))  # JSON is valid YAML
    run = train(data, out=tmp_path / "run", config=file, minutes=0.001, quiet=True)
    written = json.loads((run.folder / "config.json").read_text())
    assert written["mirror"] == [0, 1]
    assert (written["epochs"], written["minutes"]) == (None, 0.001), "an argument must override the file"


def test_the_seconds_of_a_table_include_those_before_a_resumption(tmp_path):
    epochs = callbacks.Epochs(tmp_path)
    epochs.load_state_dict({"rows": [{"seconds": 100.0}]})
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    trainer = SimpleNamespace(current_epoch=1, global_step=2, optimizers=[optimizer], is_global_zero=False)
    epochs.on_train_epoch_start(trainer, None)
    epochs.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, 0)
    epochs.on_train_epoch_end(trainer, None)
    assert 100 <= epochs.rows[-1]["seconds"] < 110
