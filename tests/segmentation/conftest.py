"""A data set and the settings of a training that takes a second."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.segmentation.volumes import AFFINES, head, scan

SMALL = {"patch_size": (16, 16, 16), "width": 4, "spacing": (4.0, 4.0, 4.0), "attention": "se", "at": ("encoder",)}
SMALL |= {"epochs": 3, "patches_per_case": 2, "validate_every": 2, "held_out": 0.3, "warmup_steps": 0, "quiet": True}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Four cases of nested balls in different geometries, as image/label pairs."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for index, name in enumerate(("RAS", "LAS, 5 mm slices", "oblique", "permuted")):
        image, labels = head(AFFINES[name], seed=index)
        nib.save(scan(image, AFFINES[name]), folder / "images" / f"case{index}.nii.gz")
        nib.save(scan(labels.astype(np.uint8), AFFINES[name]), folder / "labels" / f"case{index}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """Real scans that are not part of the library."""
    root = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ATTN3D_SHARED_DATA", root))
    if not folder.is_dir():
        pytest.skip(f"{folder}: no real scans; set ATTN3D_SHARED_DATA to their folder")
    return folder
