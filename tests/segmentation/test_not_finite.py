"""Hot voxels do no harm; errors name a loss, output, weight or input that is not finite."""

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from monai.data import MetaTensor
from safetensors.torch import load_file, save_file
from torch import nn

from attn3d.cli.app import one_line_errors
from attn3d.segmentation import Diverged, FileError, Run, predict, train
from attn3d.segmentation.callbacks import Checkpoint
from attn3d.segmentation.inference import NetworkInput, probability_planes
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.portable import normalise
from attn3d.segmentation.settings import settings_from
from attn3d.segmentation.task import SegmentationTask
from tests.segmentation.runs import SMALL
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (24, 24, 24)


def noise(hot, seed=0, at=(3, 4, 5)):
    """A scan of noise around 100 with a brighter block and one hot voxel, and the label of the block."""
    data = np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.float32)
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 8:16, 6 + seed : 14 + seed] = 1
    data += 60 * labels
    data[at] = hot
    return data, labels


@pytest.mark.parametrize("hot", [3e6, -3e6, 3e38, -3e38])
def test_a_hot_voxel_does_not_set_the_scale(hot):
    hot_one, as_without = (normalise(torch.from_numpy(noise(value)[0])[None])[0] for value in (hot, 100.0))
    assert hot_one[3, 4, 5] == (10 if hot > 0 else -10)
    hot_one[3, 4, 5] = as_without[3, 4, 5]
    torch.testing.assert_close(hot_one, as_without, atol=0.02, rtol=0)


def test_mean_and_deviation_are_those_of_voxels_above_the_mean():
    """Half of the volume is air. Brain with mean 100 and deviation 10 gets mean 0 and deviation 1."""
    generator = np.random.default_rng(0)
    data = np.zeros((2, 20, 20, 20), np.float32)
    data[:, 10:] = generator.normal(100, 10, (2, 10, 20, 20))
    data[1] = 7 * data[1] - 5
    for channel in normalise(torch.from_numpy(data)):
        assert channel[10:].mean().item() == pytest.approx(0, abs=0.05)
        assert channel[10:].std().item() == pytest.approx(1, abs=0.05)
        assert channel[:10].max().item() == pytest.approx(-10, abs=0.5)


def test_images_of_one_and_two_values():
    two = torch.zeros(1, 6, 6, 6)
    two[0, :2] = 3.0
    assert normalise(two).unique().numel() == 2
    assert normalise(two).isfinite().all()
    single = torch.zeros(1, 9, 9, 9)
    single[0, 4, 4, 4] = 3.0
    assert normalise(single)[0, 4, 4, 4] == 10
    assert torch.equal(normalise(torch.full((1, 3, 3, 3), 0.1)), torch.zeros(1, 3, 3, 3))


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """Folders of cases, by the value of their hot voxel."""
    folders = {}
    for hot in (100.0, 3e6, 3e38):
        folders[hot] = folder = tmp_path_factory.mktemp("cohort")
        for part in ("images", "labels"):
            (folder / part).mkdir()
        for index in range(4):
            data, labels = noise(hot, seed=index)
            nib.save(scan(data, AFFINES["RAS"]), folder / "images" / f"case{index}.nii.gz")
            nib.save(scan(labels, AFFINES["RAS"]), folder / "labels" / f"case{index}.nii.gz")
    return folders


SETTINGS = SMALL | {"spacing": (2.0, 2.0, 2.0), "learning_rate": 1e-2, "epochs": 6, "patches_per_case": 4}


@pytest.fixture(scope="module")
def run(cohorts, tmp_path_factory):
    return train(cohorts[3e6], out=tmp_path_factory.mktemp("runs") / "run", **SETTINGS | {"epochs": 15})


def test_a_cohort_with_hot_voxels_is_learnt(run, cohorts, tmp_path):
    losses = [float(row["loss"]) for row in csv.DictReader((run.folder / "metrics.csv").open())]
    assert losses[-1] < 0.5 * losses[0]
    found = predict(run.folder, cohorts[3e6] / "images", tmp_path / "out", probabilities=True, quiet=True)
    for name, path in found.written.items():
        labels = np.asarray(nib.load(path).dataobj)
        true = np.asarray(nib.load(cohorts[3e6] / "labels" / f"{name}.nii.gz").dataobj)
        assert 2 * (labels & true).sum() / (labels.sum() + true.sum()) > 0.7
        assert np.isfinite(nib.load(tmp_path / "out" / f"{name}_probabilities.nii.gz").get_fdata()).all()


def test_a_voxel_near_the_largest_float32(cohorts, tmp_path):
    run = train(cohorts[3e38], out=tmp_path / "run", **SETTINGS | {"epochs": 1})
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert np.isfinite(float(rows[0]["loss"]))
    assert run.network()


def test_the_error_for_a_too_high_learning_rate_suggests_a_fix(cohorts, tmp_path, capsys):
    with pytest.raises(Diverged, match=r"in epoch \d+; train again with a `learning_rate` below 1e\+06") as error:
        train(cohorts[100.0], out=tmp_path / "run", **SETTINGS | {"learning_rate": 1e6})
    assert "case" in str(error.value) or "weights" in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(typer.Exit), one_line_errors("train"):
        raise error.value
    assert capsys.readouterr().err.startswith("attn3d train: ")


def test_a_loss_that_is_not_finite_keeps_the_previous_checkpoint(cohorts, tmp_path, monkeypatch):
    step = nn.Module.__call__

    def diverging(loss, *arguments):
        value = step(loss, *arguments)
        return value * float("nan") if task[0].trainer.current_epoch == 2 else value

    task = []
    make = SegmentationTask.__init__
    monkeypatch.setattr(SegmentationTask, "__init__", lambda self, *a, **k: (make(self, *a, **k), task.append(self))[0])
    monkeypatch.setattr("monai.losses.DeepSupervisionLoss.__call__", diverging)
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 3; .* check the voxels of case\d"):
        train(cohorts[100.0], out=tmp_path / "run", **SETTINGS)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(values.isfinite().all() for values in checkpoint["state_dict"].values())
    monkeypatch.undo()
    assert train(out=tmp_path / "run", resume=True, quiet=True).finished, "must resume from the checkpoint"


def test_training_does_not_save_weights_that_are_not_finite(cohorts, tmp_path, monkeypatch):
    def spoil(task, *_):
        if task.trainer.current_epoch == 1:
            next(task.network.parameters()).data.view(-1)[0] = float("inf")

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", spoil)
    with pytest.raises(Diverged, match="in epoch 2"):
        train(cohorts[100.0], out=tmp_path / "run", **SETTINGS)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0


def test_weights_with_nan_are_refused_by_name(run, cohorts, tmp_path):
    again = Run(tmp_path, run.config)
    again.folder.joinpath("config.json").write_bytes((run.folder / "config.json").read_bytes())
    weights = load_file(run.weights)
    name = list(weights)[-1]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, again.weights)
    with pytest.raises(FileError, match=rf"model.safetensors: its weights '{name}' are not finite"):
        predict(again.folder, cohorts[3e6] / "images", tmp_path / "out", quiet=True)


def test_a_checkpoint_with_nan_is_refused_by_name(run, tmp_path):
    for name in ("config.json", "split.json"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name].view(-1)[0] = float("nan")
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(FileError, match=rf"last.ckpt: its weights '{name}' are not finite; remove it"):
        train(out=tmp_path, resume=True, quiet=True)


def test_inputs_and_outputs_of_a_network_must_be_finite():
    volume = MetaTensor(torch.zeros(1, 16, 16, 16))
    network = nn.Conv3d(1, 2, 1)
    volume[0, 1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="`volume` must be finite, got 1 voxels"):
        list(probability_planes(NetworkInput(network, volume, (16, 16, 16), Labels.of({1: "block"})), 0))
    volume[0, 1, 2, 3] = 1.0
    nn.init.constant_(network.weight, 3e38)
    nn.init.constant_(network.bias, 3e38)
    with pytest.raises(ValueError, match="`network` gives values that are not finite"):
        list(probability_planes(NetworkInput(network, volume, (16, 16, 16), Labels.of({1: "block"})), 0))


@pytest.fixture
def diverged(monkeypatch):
    """A task in its fifth epoch with a network that gives NaN."""
    settings = settings_from(None, {})
    config = {"labels": Labels.of({1: "block"}), "channels_last": False, "ema_decay": 0.0, "loss": settings.loss}
    config |= {"class_weights": None, "network": "UNet", "strides": [(2, 2, 2)], "patch_size": (8, 8, 8)}
    network = nn.Conv3d(1, 2, 1)
    nn.init.constant_(network.weight, torch.nan)
    monkeypatch.setattr(SegmentationTask, "trainer", SimpleNamespace(current_epoch=4))
    return SegmentationTask(network, SimpleNamespace(**config, learning_rate=1e-3))


def test_an_output_that_is_not_finite_ends_a_validation(diverged):
    batch = {"image": torch.zeros(1, 1, 8, 8, 8), "label": torch.zeros(8, 8, 8), "name": "case7"}
    diverged.on_validation_epoch_start()
    with pytest.raises(Diverged, match=r"the network's output is not finite in epoch 5; .* check the voxels of case7$"):
        diverged.validation_step(batch, 0)


def test_the_checkpoint_refuses_weights_that_are_not_finite(diverged, tmp_path):
    with pytest.raises(Diverged, match="the weights 'weight' are not finite in epoch 5; train again with a"):
        Checkpoint(tmp_path / "last.ckpt").on_train_epoch_end(diverged.trainer, diverged)
    assert not (tmp_path / "last.ckpt").exists()


class Gives(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, image):
        return self.outputs


def test_deep_supervision_weights_coarser_outputs_by_a_half(diverged):
    """The outputs are a list of maps, or stacked as in DynUNet."""
    label = (torch.arange(512).view(1, 1, 8, 8, 8) % 3 == 0).float()
    fine, coarse = (torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    single = [diverged.loss.loss(one, label) for one in (fine, coarse)]
    for outputs in ([fine, coarse], torch.stack([fine, coarse], 1)):
        diverged.network = Gives(outputs)
        loss = diverged.training_step({"image": torch.zeros(1, 1, 8, 8, 8), "label": label}, 0)
        torch.testing.assert_close(loss, single[0] + 0.5 * single[1])
