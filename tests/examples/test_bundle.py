"""The example bundle trains and infers, at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai import bundle
from monai.bundle import ConfigParser
from monai.utils import optional_import

import attn3d

BUNDLE = Path(__file__).parents[2] / "examples" / "bundle"
TINY = {"resolution": 8, "patch_size": [16, 16, 16]}
needs_ignite = pytest.mark.skipif(
    not optional_import("ignite")[1], reason="pytorch-ignite is not installed: MONAI's trainers need it"
)
needs_fire = pytest.mark.skipif(
    not optional_import("fire")[1], reason="fire is not installed: the command line of MONAI's bundles needs it"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle, from which its commands are called."""
    copied = shutil.copytree(BUNDLE, tmp_path / "bundle")
    monkeypatch.chdir(copied)
    return copied


def in_this_process(config: str, **settings: object) -> None:
    bundle.run(config_file=config, **settings)


def from_the_command_line(config: str, **settings: object) -> None:
    words = [word for name, value in settings.items() for word in (f"--{name}", json.dumps(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *words]
    paths = os.pathsep.join([str(BUNDLE.parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": paths})


@needs_ignite
@pytest.mark.filterwarnings("ignore")  # MONAI warns at every run that a bundle is code
@pytest.mark.parametrize(
    "run",
    [in_this_process, pytest.param(from_the_command_line, marks=[pytest.mark.nightly, needs_fire])],
)
def test_it_trains_and_infers(run: Callable[..., None], root: Path) -> None:
    run("configs/train.json", epochs=2, patches=1, **TINY)
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    net = network("configs/train.json")
    net.load_state_dict(state)
    assert any("attn3d" in key for key in state)

    run("configs/inference.json", **TINY)
    scan, found = nib.load(root / "data" / "mni152_t1.nii.gz"), nib.load(root / "eval" / "mni152_t1_seg.nii.gz")
    assert found.shape == scan.shape
    np.testing.assert_allclose(found.affine, scan.affine)
    labels = np.asarray(found.dataobj)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1, 2, 3}


def network(config: str) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(config)
    return parser.get_parsed_content("network_def")


def test_both_configurations_have_the_same_network_with_attention(root: Path) -> None:
    one, two = network("configs/train.json"), network("configs/inference.json")
    [item] = attn3d.inserted_attention(one)
    assert item["spec"] == ["cbam", {"reduction": 8}]
    assert {name.split(":")[0] for name in item["at"]} == {"encoder", "skip"}
    assert attn3d.inserted_attention(two) == [item]
    assert list(one.state_dict()) == list(two.state_dict())


def test_the_metadata_describe_inputs_and_outputs(root: Path) -> None:
    meta = json.loads((root / "configs" / "metadata.json").read_text())
    assert meta["required_packages_version"]["attn3d"] == attn3d.__version__
    data = meta["network_data_format"]
    image, prediction = data["inputs"]["image"], data["outputs"]["pred"]
    output = network("configs/inference.json")(torch.randn(1, image["num_channels"], *image["spatial_shape"]))
    assert output.shape == (1, prediction["num_channels"], *prediction["spatial_shape"])
    assert len(prediction["channel_def"]) == prediction["num_channels"]
