"""A data set, a run whose network needs no training, and the learning rates of a training."""

import os
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import timer

from attn3d.segmentation import Run, SegmentationTask, callbacks
from tests.segmentation.runs import Brightness, make_run
from tests.segmentation.volumes import write_heads


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Four cases of nested balls in different geometries, as image/label pairs."""
    return write_heads(tmp_path_factory.mktemp("data"), ("RAS", "LAS, 5 mm slices", "oblique", "permuted"))


@pytest.fixture(scope="session")
def shared_data():
    """Real scans that are not part of the library."""
    root = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ATTN3D_SHARED_DATA", root))
    if not folder.is_dir():
        pytest.skip(f"{folder}: no real scans; set ATTN3D_SHARED_DATA to their folder")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that labels bright voxels."""
    monkeypatch.setattr(Run, "network", lambda self, best: Brightness().eval())
    return make_run(tmp_path / "run")


class Clock:
    """A clock that advances by a second at every reading."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now

    monotonic = perf_counter


@pytest.fixture
def recorded(monkeypatch):
    """Records learning rates, and the steps before each validation, with a simulated clock."""
    rates, validated = [], []
    step, validate = SegmentationTask.training_step, SegmentationTask.on_validation_epoch_start

    def stepped(task, batch, index):
        rates.append(task.optimizers().param_groups[0]["lr"])
        return step(task, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", stepped)
    monkeypatch.setattr(
        SegmentationTask, "on_validation_epoch_start", lambda task: (validated.append(len(rates)), validate(task))
    )
    clock = Clock()
    for module in (callbacks, timer):  # of `Epochs` and of Lightning's `Timer`
        monkeypatch.setattr(module, "time", clock)
    return rates, validated
