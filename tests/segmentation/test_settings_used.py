"""Each setting has its effect on a training."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from attn3d.segmentation import Interrupted, callbacks, create_network, train, training
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.losses import create_loss
from attn3d.segmentation.portable import WindowInferer
from attn3d.segmentation.task import SegmentationTask
from tests.segmentation.runs import SMALL

STILL = SMALL | {"epochs": 1, "learning_rate": 1e-12, "validate_every": 2}


def test_the_seed_sets_the_first_weights(data, tmp_path):
    one, again, other = (
        load_file(train(data, out=tmp_path / name, **STILL, seed=seed).weights)
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    name = next(name for name, value in one.items() if value.dim() > 1)
    assert torch.equal(one[name], again[name])
    assert not torch.allclose(one[name], other[name], atol=1e-3)


def test_the_gradient_is_clipped(data, tmp_path):
    """With Nesterov momentum, a step moves the weights by at most 1 + 0.99 + .. times the rate and the limit."""
    first = load_file(train(data, out=tmp_path / "first", **STILL).weights)
    moved = {}
    for clip in (1e-3, 0.0):
        given = SMALL | {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-2, "weight_decay": 0}
        last = load_file(train(data, out=tmp_path / str(clip), **given, gradient_clip=clip).weights)
        moved[clip] = torch.cat([(last[name] - first[name]).flatten() for name in first]).norm().item()
    assert moved[1e-3] < 1e-2 * 1e-3 * 3 * 3  # three steps
    assert moved[0.0] > 2 * moved[1e-3]


def made_task(network=None, **changed):
    """A task with the settings of a run, without data."""
    config = {"labels": Labels.of({1: "a", 2: "b"}), "channels_last": False, "ema_decay": 0.0, "loss": "dice_ce"}
    config |= {
        "class_weights": None,
        "optimizer": "adamw",
        "learning_rate": 0.1,
        "weight_decay": 0.3,
        "warmup_steps": 0,
    }
    return SegmentationTask(network or torch.nn.Conv3d(1, 3, 1), SimpleNamespace(**config | changed))


@pytest.mark.parametrize(
    ("loss", "weights"),
    [("dice_ce", None), ("dice_ce", (1.0, 0.0, 4.0)), ("tversky", None), ("generalized_dice", None)],
)
def test_the_loss_is_that_of_the_settings(loss, weights):
    made = made_task(loss=loss, class_weights=weights)
    x, label = torch.randn(2, 1, 4, 5, 6), torch.randint(3, (2, 1, 4, 5, 6))
    expected = create_loss(loss, made.config.labels, weights)(made.network(x), label)
    torch.testing.assert_close(made.training_step({"image": x, "label": label}, 0), expected)


def test_the_optimizer_is_that_of_the_settings(monkeypatch):
    monkeypatch.setattr(
        SegmentationTask, "trainer", SimpleNamespace(callbacks=[], global_step=0, estimated_stepping_batches=10)
    )
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = made_task(optimizer=name).configure_optimizers()["optimizer"]
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert group["weight_decay"] == 0.3
        if name == "sgd":
            assert (group["momentum"], group["nesterov"]) == (0.99, True)


def test_the_rate_decays_with_the_power_of_the_documentation(recorded, data, tmp_path):
    rates, _ = recorded
    train(data, out=tmp_path / "run", **SMALL)
    expected = [3e-3 * (1 - step / len(rates)) ** 0.9 for step in range(len(rates))]
    assert rates == pytest.approx(expected)


def test_the_split_follows_from_its_seed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda *_: None)
    held = set()
    for seed in range(6):
        train(data, out=tmp_path / str(seed), **SMALL, split_seed=seed)
        held.update(json.loads((tmp_path / str(seed) / "split.json").read_text())["validation"])
    assert len(held) > 1


def test_without_deep_supervision_a_training_has_one_output(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda *_: None)
    given = SMALL | {"network": "DynUNet", "strides": [(2, 2, 2)] * 3, "deep_supervision": False}
    run = train(data, out=tmp_path / "run", **given)
    assert run.new_network().train()(torch.zeros(1, 1, 16, 16, 16)).dim() == 5


def test_kernels_are_those_of_the_network():
    kernels = ((3, 3, 1), (1, 3, 3), (3, 3, 3))
    net = create_network("DynUNet", 1, 2, width=4, strides=((2, 2, 1), (2, 2, 2)), kernels=kernels)
    found = [net.input_block.conv1.conv, net.downsamples[0].conv1.conv, net.bottleneck.conv1.conv]
    assert [one.kernel_size for one in found] == [*kernels]


def test_the_average_is_validated_and_kept_as_the_best(data, tmp_path, monkeypatch):
    seen, infer = [], WindowInferer.__call__

    def watched(inferer, image, network, **options):
        seen.append(network)
        return infer(inferer, image, network, **options)

    monkeypatch.setattr(WindowInferer, "__call__", watched)
    tasks, make = [], SegmentationTask.__init__
    monkeypatch.setattr(SegmentationTask, "__init__", lambda self, *a: (make(self, *a), tasks.append(self))[0])
    run = train(data, out=tmp_path / "run", **SMALL | {"ema_decay": 0.9, "validate_every": 3})
    assert seen
    assert all(network is tasks[0].average.module for network in seen)
    assert run.best_weights.read_bytes() == run.weights.read_bytes()


def test_the_best_weights_survive_a_resumption_with_worse_ones(data, tmp_path, monkeypatch):
    dice = iter((0.3, 0.2))
    monkeypatch.setattr(
        SegmentationTask, "on_validation_epoch_end", lambda self: setattr(self, "dice", {"dice": next(dice)})
    )
    write_checkpoint = callbacks.Checkpoint.on_train_epoch_end

    def stopped(checkpoint, trainer, of):
        write_checkpoint(checkpoint, trainer, of)
        raise KeyboardInterrupt

    settings = SMALL | {"epochs": 2, "validate_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_train_epoch_end", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(data, out=tmp_path / "run", **settings)
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    run = train(out=tmp_path / "run", resume=True, quiet=True)
    assert run.best_weights.read_bytes() == best
    assert run.weights.read_bytes() != best


def test_workers_reach_the_loader(data, tmp_path, monkeypatch):
    asked = []

    def fit(trainer, task, patches, **options):
        asked.append(patches.workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "fit", fit)
    with pytest.raises(Interrupted):
        train(data, out=tmp_path / "run", workers=3, **SMALL)
    assert asked == [3]


def test_devices_reach_the_trainer(data, tmp_path, monkeypatch):
    asked = []

    def trainer(*, devices, strategy, **options):
        asked.append((devices, strategy))
        raise KeyboardInterrupt

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(training, "Trainer", trainer)
    for devices in (1, 2):
        with pytest.raises(Interrupted):
            train(data, out=tmp_path / str(devices), devices=devices, **SMALL)
    assert asked == [(1, "auto"), (2, "ddp")]
