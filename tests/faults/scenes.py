"""Commands to test with faults: their inputs, how a user continues after a fault, and the expected files."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

from tests.segmentation.runs import SMALL
from tests.segmentation.volumes import write_heads

VOLATILE = ("seconds", "versions", "attn3d")  # values that differ between equal runs


class Scene(NamedTuple):
    """A command to test with faults.

    Attributes:
        name: name of the command.
        arguments: its arguments.
        again: the arguments with which a user continues, from the folder and the first arguments.
        makes: the path that the command writes, in the folder.
        needs: the paths that it needs, in the folder of inputs.
    """

    name: str
    arguments: list[str]
    again: Callable[[Path, list[str]], list[str]]
    makes: str
    needs: tuple[str, ...] = ()


def same(folder: Path, arguments: list[str]) -> list[str]:
    """The same command again."""
    return arguments


def resumed(folder: Path, arguments: list[str]) -> list[str]:
    """Resumes a training, or starts it again if there is no run yet."""
    begun = (folder / "run" / "config.json").exists()
    return ["train", "--resume", "--out", "run", "--quiet"] if begun else arguments


def replaced(folder: Path, arguments: list[str]) -> list[str]:
    """The same command, with permission to overwrite."""
    return [*arguments, "--overwrite"]


TRAIN = ["train", "--data", "data", "--out", "run", "--attention", "none", "--config", "config.json", "--quiet"]
COMPARE = ["compare", "--mechanisms", "eca", "--at", "encoder", "--seeds", "1", "--data", "data", "--out", "all"]
PREDICT = ["predict", "trained", "-i", "data/images", "-o", "found", "--statistics", "--preview", "--probabilities"]
EVALUATE = ["evaluate", "data/labels", "data/labels", "-o", "scores"]
SCENES = [
    Scene("train", TRAIN, resumed, "run", ("data", "config.json")),
    Scene("predict", [*PREDICT, "--quiet"], same, "found", ("data", "trained")),
    Scene("compare", [*COMPARE, "--config", "config.json", "--quiet"], same, "all", ("data", "config.json")),
    Scene(
        "evaluate", ["evaluate", "data/labels", "data/labels", "-o", "scores", "--quiet"], replaced, "scores", ("data",)
    ),
    Scene("report", ["report", "trained"], replaced, "trained", ("data", "trained")),
    Scene("simulate", ["simulate", "--cases", "1", "--out", "cohort", "--quiet"], same, "cohort"),
]


def write_inputs(folder: Path) -> None:
    """Writes three small cases and the settings of a training that takes a second."""
    write_heads(folder / "data", ("RAS", "LAS, 5 mm slices", "oblique"), millimetres=40.0)
    settings = {name: value for name, value in SMALL.items() if name not in ("quiet", "attention", "at")}
    settings |= {"patch_size": (16, 16, 8), "epochs": 2, "patches_per_case": 1}
    (folder / "config.json").write_text(json.dumps(settings))


def stage(inputs: Path, scene: Scene, folder: Path) -> Path:
    """Makes a new folder with the inputs of a scene."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in scene.needs:
        if (inputs / name).is_dir():
            shutil.copytree(inputs / name, folder / name)
        else:
            shutil.copy(inputs / name, folder / name)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """The content of each file in a folder, without what differs between equal runs.

    Raises:
        Exception: from the library that reads a file, if the file is damaged.
    """
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def whole(folder: Path) -> str:
    """The first file under its final name that cannot be read, with the error; empty if all can be read."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith((".unfinished-", ".lock")) for part in path.parts):
            try:
                _content(path)
            except Exception as error:  # from the library that reads it
                return f"{path.relative_to(folder)} is torn: {error!r}"
    return ""


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return [
            {name: cell for name, cell in row.items() if name not in VOLATILE} for row in csv.DictReader(path.open())
        ]
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        return image.affine.tolist(), hashlib.sha256(np.asarray(image.dataobj).tobytes()).hexdigest()
    if path.suffix == ".safetensors":
        return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in load_file(path).items()}
    if path.suffix == ".png":
        from matplotlib.image import imread

        return imread(path).shape
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".ckpt":
        import torch

        return sorted(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return path.stat().st_size


def _steady(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _steady(value) for name, value in content.items() if name not in VOLATILE and name != "data"}
    return [_steady(value) for value in content] if isinstance(content, list) else content
