"""Prepared cases: what a torn one does, and what patches are drawn from them."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchio as tio
from lightning.pytorch.accelerators import CPUAccelerator

from attn3d.segmentation import FileError, train
from attn3d.segmentation.configuration import DEFAULTS, configure
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.preprocessing import prepared_paths, prepared_subject, write_prepared
from tests.segmentation.conftest import SMALL


@pytest.fixture(scope="module")
def dataset(data):
    return find_dataset(data)


@pytest.fixture(scope="module")
def configuration(dataset):
    fingerprint = take_fingerprint(dataset, dataset.cases[:2], quiet=True)
    settings = {name: value for name, value in SMALL.items() if name != "quiet"}
    return configure(dataset, 1, fingerprint, DEFAULTS | settings)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", [0, 1], ids=["image", "classes"])
@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.unlink()], ids=["cut", "a bit", "gone"])
def test_what_is_not_as_it_was_written_is_made_anew(part, damage, dataset, configuration, tmp_path, caplog):
    case = dataset.cases[0]
    write_prepared(case, dataset, configuration, tmp_path)
    path = prepared_paths(case, tmp_path)[part]
    whole = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING, "attn3d"):
        write_prepared(case, dataset, configuration, tmp_path)
    assert path.read_bytes() == whole
    assert "is prepared anew" in caplog.text


def test_what_is_whole_is_kept(dataset, configuration, tmp_path):
    case = dataset.cases[0]
    write_prepared(case, dataset, configuration, tmp_path)
    before = [path.stat().st_mtime_ns for path in prepared_paths(case, tmp_path)]
    write_prepared(case, dataset, configuration, tmp_path)
    assert [path.stat().st_mtime_ns for path in prepared_paths(case, tmp_path)] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "case0.json", "case0_classes.nii", "case0_image.nii",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_manifest_that_cannot_be_read_makes_the_case_anew(content, dataset, configuration, tmp_path):
    case = dataset.cases[0]
    write_prepared(case, dataset, configuration, tmp_path)
    manifest = tmp_path / "case0.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(content)
    write_prepared(case, dataset, configuration, tmp_path)
    assert json.loads(manifest.read_bytes()) == json.loads(whole)


def test_a_file_that_is_not_written_whole_is_never_used(dataset, configuration, tmp_path, monkeypatch):
    """As on a full disk, which not every writer notices."""
    save = tio.Image.save

    def torn(image, path):
        save(image, path)
        cut(path)

    monkeypatch.setattr(tio.Image, "save", torn)
    with pytest.raises(FileError, match=r"case0_image.nii: is not written whole; is the disk full"):
        write_prepared(dataset.cases[0], dataset, configuration, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_training_resumed_with_a_torn_file_ends_with_the_same_weights(data, tmp_path):
    settings = SMALL | {"epochs": 2}
    whole = train(data, out=tmp_path / "whole", **settings)
    torn = train(data, out=tmp_path / "torn", **settings)
    for part in (torn.weights, torn.scores, torn.checkpoint):
        part.unlink()
    for path in (tmp_path / "torn" / "prepared").glob("*_image.nii"):
        cut(path)
    again = train(out=torn.folder, resume=True, quiet=True)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_patches_of_a_training_hold_labels_and_name_their_case(dataset, configuration, tmp_path):
    """Two of three by intent; the balls fill most of the scans, so that no patch lacks them."""
    patches = PatchData(configuration, dataset, dataset.cases[:2], dataset.cases[2:], tmp_path, quiet=True)
    patches.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, accelerator=CPUAccelerator())
    patches.prepare_data()
    batches = list(patches.train_dataloader())
    assert {name for batch in batches for name in batch["name"]} == {"case0", "case1"}
    sampler = patches.train_dataloader().dataset.sampler
    assert sampler.share == pytest.approx(2 / 3)
    volume = next(iter(patches.val_dataloader()))
    assert volume["name"] == "case2"
    subject = prepared_subject(dataset.cases[2], tmp_path)
    assert torch.equal(volume["label"], subject["label"].data[0].long())
    assert set(np.unique(volume["label"])) == {0, 1, 2, 3}
