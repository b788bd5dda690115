"""Prepared cases: damaged files are prepared again, and training draws its batches from them."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from attn3d.segmentation import train
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import find_dataset, read_case_image
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.portable import on_grid, to_channels
from attn3d.segmentation.preprocessing import PreparedCase
from attn3d.segmentation.settings import settings_from
from tests.segmentation.runs import SMALL


@pytest.fixture(scope="module")
def dataset(data):
    return find_dataset(data)


@pytest.fixture(scope="module")
def configuration(dataset):
    fingerprint = take_fingerprint(dataset, dataset.cases[:2], quiet=True)
    settings = {name: value for name, value in SMALL.items() if name != "quiet"}
    return configure(dataset, 1, fingerprint, settings_from(None, settings))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b"")


def lose_metadata(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize("damage", [cut, empty, lose_metadata, Path.unlink])
def test_a_damaged_file_is_prepared_again(damage, dataset, configuration, tmp_path, caplog):
    case = PreparedCase(dataset.cases[0], tmp_path)
    case.write(dataset, configuration)
    whole = case.path.read_bytes()
    damage(case.path)
    there = case.path.exists()
    with caplog.at_level(logging.WARNING, "attn3d"):
        case.write(dataset, configuration)
    assert case.path.read_bytes() == whole
    assert ("is prepared again" in caplog.text) == there


def test_an_intact_file_is_kept(dataset, configuration, tmp_path):
    case = PreparedCase(dataset.cases[0], tmp_path)
    case.write(dataset, configuration)
    before = case.path.stat().st_mtime_ns
    case.write(dataset, configuration)
    assert case.path.stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case0.safetensors"]


def test_other_settings_prepare_a_case_again(dataset, configuration, tmp_path):
    case = PreparedCase(dataset.cases[0], tmp_path)
    case.write(dataset, configuration)
    before = load_file(case.path)
    case.write(dataset, configuration.model_copy(update={"spacing": (8.0, 8.0, 8.0)}))
    assert load_file(case.path)["label"].size < before["label"].size


def test_a_changed_file_of_a_case_prepares_it_again(dataset, configuration, tmp_path):
    case = PreparedCase(dataset.cases[0], tmp_path)
    case.write(dataset, configuration)
    label = dataset.cases[0].label[0]
    content, times = label.read_bytes(), label.stat().st_mtime_ns
    image = nib.load(label)
    try:
        nib.save(nib.Nifti1Image(np.full(image.shape, 1, np.uint8), image.affine), label)
        case.write(dataset, configuration)
        assert (load_file(case.path)["label"] == 1).all()
    finally:
        label.write_bytes(content)
        os.utime(label, ns=(times, times))
    case.write(replace(dataset, threshold=1.0), configuration)
    with case.open() as file:
        assert json.loads(file.metadata()["made_with"])["threshold"] == 1.0


def test_training_resumed_with_a_damaged_file_ends_with_the_same_weights(data, tmp_path):
    settings = SMALL | {"epochs": 2}
    whole = train(data, out=tmp_path / "whole", **settings)
    torn = train(data, out=tmp_path / "torn", **settings)
    for part in (torn.weights, torn.scores, torn.checkpoint):
        part.unlink()
    for path in (tmp_path / "torn" / "prepared").glob("*.safetensors"):
        cut(path)
    again = train(out=torn.folder, resume=True, quiet=True)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("windows", [None, ((40.0, 80.0), (80.0, 200.0))], ids=["normalised", "windows"])
def test_training_and_prediction_use_the_same_intensities(windows, dataset, configuration, tmp_path):
    """A prepared case has the intensities of its scan and lists the voxels of each class."""
    configuration = configuration.model_copy(update={"windows": windows})
    case = PreparedCase(dataset.cases[1], tmp_path)
    case.write(dataset, configuration)
    stored = load_file(case.path)
    expected = on_grid(read_case_image(dataset.cases[1]), configuration.spacing, windows).as_tensor()
    assert torch.equal(torch.from_numpy(stored["image"]), expected)
    shown = to_channels(expected, windows)
    assert len(shown) == configuration.in_channels
    assert torch.equal(to_channels(torch.stack([expected, 2 * expected]), windows)[0], shown), "also in a batch"
    for value, name in configuration.labels.legend.items():
        assert (stored["label"].ravel()[stored[f"foreground {name}"]] == value).all()
        assert len(stored[f"foreground {name}"]) == (stored["label"] == value).sum() > 0


def test_batches_of_a_training_and_volumes_of_a_validation(dataset, configuration, tmp_path):
    patches = PatchData(configuration, dataset, dataset.cases[:2], dataset.cases[2:3], tmp_path, quiet=True)
    patches.trainer = SimpleNamespace(global_rank=0, world_size=1)
    patches.prepare_data()
    batches = list(patches.train_dataloader())
    assert [batch["image"].shape for batch in batches] == [(2, 1, 16, 16, 16)] * 2
    assert {name for batch in batches for name in batch["name"]} == {"case0", "case1"}
    assert set(torch.cat([batch["label"] for batch in batches]).unique().tolist()) <= {0, 1, 2, 3}
    (volume,) = patches.val_dataloader()
    assert volume["name"] == "case2"
    assert volume["image"].shape == (1, 1, *volume["label"].shape)
    assert set(np.unique(volume["label"])) == {0, 1, 2, 3}
    patches.trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert list(patches.val_dataloader()) == [{}], "the second rank has no volume"


def test_workers_load_the_same_patches(dataset, configuration, tmp_path):
    patches = PatchData(configuration, dataset, dataset.cases[:2], dataset.cases[2:], tmp_path, quiet=True)
    patches.trainer = SimpleNamespace(global_rank=0, world_size=1)
    patches.prepare_data()
    alone = list(patches.train_dataloader())
    patches.workers = 1
    for one, other in zip(alone, patches.train_dataloader(), strict=True):
        assert torch.equal(one["image"], other["image"])
