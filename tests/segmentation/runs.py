"""Runs and scans of tests that train nothing, and the settings of a training that takes a second."""

import json

import nibabel as nib
import numpy as np
import torch
from torch import nn

from attn3d.segmentation import Run
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import Dataset
from attn3d.segmentation.fingerprint import Fingerprint
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.settings import settings_from
from tests.segmentation.volumes import AFFINES, scan

SMALL = {"patch_size": (16, 16, 16), "width": 4, "spacing": (4.0, 4.0, 4.0), "attention": "se", "at": ("encoder",)}
SMALL |= {"epochs": 3, "patches_per_case": 2, "validate_every": 2, "held_out": 0.3, "warmup_steps": 0, "quiet": True}

LABELS = Labels.of({2: "bright", 5: "brightest"})
SHAPE = (20, 24, 12)


class Brightness(nn.Module):
    """Predicts class 1 above about 95 and class 2 above 200."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        x = x[:, :1] * 200 + 100  # undoes the window from -100 to 300
        return torch.cat([1000.0 + 0 * x, 10 * x, 20 * x - 2000 + 0.0], 1) + self.nothing


def make_run(folder, images=1, labels=LABELS, modality="CT", **settings):
    """A run folder as after a training, without weights."""
    given = {"windows": ((100.0, 400.0),), "spacing": (2.0, 2.0, 2.0), "patch_size": (16, 16, 16), "attention": None}
    dataset = Dataset(folder, "test", labels=labels, modality=modality)
    fingerprint = Fingerprint(2, SHAPE, (2, 2, 2), ((2, 2),) * 3, ({},) * images, {}, {})
    config = configure(dataset, images, fingerprint, settings_from(None, given | settings))
    return Run.create(folder, config, {}, {"training": [], "validation": []})


def bright(place=(6, 9, 4), size=(4, 6, 4), value=190.0):
    """A dark scan with a bright block, and the slices of the block."""
    data = np.zeros(SHAPE, np.float32)
    block = tuple(slice(start, start + length) for start, length in zip(place, size, strict=True))
    data[block] = value
    return data, block


def save(folder, **scans):
    """Writes a folder of scans, by name."""
    folder.mkdir()
    for name, data in scans.items():
        nib.save(scan(data, AFFINES["RAS"]), folder / f"{name}.nii.gz")
    return folder


def change_json(path, **values):
    """Changes values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
