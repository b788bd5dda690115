"""Invalid and unusual inputs: each must give a right result, or an error of one line that names the problem."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.faults.process import command
from tests.faults.scenes import TRAIN, Scene, same, stage
from tests.faults.sweeps import Row, refused, spread
from tests.segmentation.runs import change_json

RESUME = ["train", "--resume", "--out", "trained", "--quiet"]
PREDICT = ["predict", "trained", "-i", "scans", "-o", "found", "--statistics", "--preview", "--quiet"]
EVALUATE = ["evaluate", "scans", "data/labels", "-o", "scores", "--quiet"]
REPORT = ["report", "trained"]
Odd = tuple[str, list[str], Callable[[Path], object]]  # name, command, and a function that changes the inputs


def settings() -> Iterator[Odd]:
    """Invalid settings in the configuration file of a training."""
    changes = {
        "strides": ([[0, 1, 1]], [2, 2, 2], "2", [[2, 2]], [], [[2, 2, 2]] * 9),
        "kernels": ([[0, 3, 3]], [[3, 3, 3]], 3, [[2, 2, 2], [2, 2, 2]]),
        "learning_rate": ("1e-3", 1e38, 0, -1, "fast", None, [1], True),
        "patch_size": (16, "16", [16, 16], [16, 16, 0], [1e9, 1, 1], [15, 16, 16], [16.5, 16, 16]),
        "spacing": (1, [1, 1], [0, 1, 1], ["1", "1", "1"], [-1, 1, 1], [1e9, 1e9, 1e9]),
        "windows": ([40, 80], [[40]], [[40, 0]], "brain", [["a", "b"]], []),
        "at": ("skip", ["nowhere"], [1], 3),
        "attention": ("cbm", 5, ["cbam", {"reduction": 0}], ["cbam", {"colour": 1}], {}),
        "network": ("Unet", 3, None, ["UNet"]),
        "width": (0, -4, 1.5, "16", True),
        "epochs": (0, "3", 1.5, -1),
        "minutes": (0, -1, "soon", [1], 2),
        "optimizer": ("adam", 3, None),
        "mirror": ([3], 0, "x", [0, 0]),
        "ema_decay": (1, -0.1, "a"),
        "warmup_steps": (-1, 1.5),
        "gradient_clip": (-1, "none"),
        "channels_last": ("yes", 1),
        "held_out": (0, 1, 1.5, -0.2, "half"),
        "batch_size": (0, "2"),
        "validate_every": (0, 1.5),
        "seed": (-1, 1.5, "a"),
        "split_seed": (-1, "a"),
        "colour": ("blue",),
    }
    for name, values in changes.items():
        for value in values:
            yield (
                f"setting {name}: {value!r}",
                TRAIN,
                lambda folder, name=name, value=value: change_json(folder / "config.json", **{name: value}),
            )
    for text in ("", "- a", "epochs: [", "3", "[" * 5000, "\0", "a: &b *b"):
        yield f"settings {text[:9]!r}", TRAIN, lambda folder, text=text: (folder / "config.json").write_text(text)


def runs() -> Iterator[Odd]:
    """Files of a run that are cut, empty, edited, or of another kind."""
    for name in ("config.json", "split.json", "fingerprint.json", "validation/scores.json"):
        for text in ("", "{}", "[]", "3", "null", "text", "[" * 100_000):
            for arguments in (RESUME, REPORT, PREDICT):
                if arguments is RESUME or (name != "validation/scores.json" and arguments is REPORT):
                    yield (
                        f"{arguments[0]} with {name} {text[:9]!r}",
                        arguments,
                        lambda folder, name=name, text=text: (
                            unfinished(folder),
                            (folder / "trained" / name).write_text(text),
                        ),
                    )
                elif name in ("config.json", "validation/scores.json"):
                    yield (
                        f"{arguments[0]} with {name} {text[:9]!r}",
                        arguments,
                        lambda folder, name=name, text=text: (folder / "trained" / name).write_text(text),
                    )
    for keys in ({"training": []}, {"training": ["a"], "validation": ["b"]}, {"training": 1, "validation": 2}):
        yield (
            f"resume with split.json {keys}",
            RESUME,
            lambda folder, keys=keys: (
                unfinished(folder),
                (folder / "trained" / "split.json").write_text(json.dumps(keys)),
            ),
        )
    contents = {"empty": b"", "text": b"text", "cut": None, "pickle": b"\x80\x04N."}
    for what, content in contents.items():
        for name, arguments in (("last.ckpt", RESUME), ("model.safetensors", PREDICT)):
            yield (
                f"{arguments[0]} with {name} {what}",
                arguments,
                lambda folder, name=name, content=content: (
                    unfinished(folder) if name == "last.ckpt" else None,
                    cut(folder / "trained" / name, content),
                ),
            )
    for edit in ({"width": 8}, {"width": "a"}, {"labels": {}}, {"labels": 3}, {"images": 2}, {"strides": None}):
        for arguments in (RESUME, PREDICT):
            yield (
                f"{arguments[0]} with config.json edited: {edit}",
                arguments,
                lambda folder, edit=edit, arguments=arguments: (
                    unfinished(folder, keep="model.safetensors") if arguments is PREDICT else unfinished(folder),
                    change_json(folder / "trained" / "config.json", **edit),
                ),
            )


def scans() -> Iterator[Odd]:
    """Invalid scans and labels, and unusual file names."""
    files: dict[str, Callable[[Path], object]] = {
        "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
        "a folder": lambda path: (path.unlink(), path.mkdir()),
        "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"text"),
        "cut": lambda path: cut(path, None),
        "constant": lambda path: save(path, np.ones((9, 9, 9))),
        "two values": lambda path: save(path, np.arange(729).reshape(9, 9, 9) % 2),
        "NaN": lambda path: save(path, np.full((9, 9, 9), np.nan)),
        "12 voxels a side": lambda path: save(path, np.random.default_rng(0).normal(100, 9, (12, 12, 12))),
        "one slice": lambda path: save(path, np.random.default_rng(0).normal(100, 9, (12, 12, 1))),
        "one voxel": lambda path: save(path, np.ones((1, 1, 1))),
        "four axes": lambda path: save(path, np.ones((5, 5, 5, 2))),
        "far away": lambda path: save(path, np.random.default_rng(0).normal(100, 9, (9, 9, 9)), 1e30),
        "below a micron": lambda path: save(path, np.random.default_rng(0).normal(100, 9, (9, 9, 9)), 1e-7),
        "labels": lambda path: save(path, np.arange(729).reshape(9, 9, 9) % 200),
    }
    for what, make in files.items():
        for arguments in (PREDICT, EVALUATE):
            yield f"{arguments[0]}: {what}", arguments, lambda folder, make=make: make(scan_of(folder))
        for part in ("images", "labels"):
            yield (
                f"train: {part} {what}",
                TRAIN,
                lambda folder, make=make, part=part: make(folder / "data" / part / "case0.nii.gz"),
            )
    for name in ("$x$", "[red]", "=1+1", "caf\udce9", "n" * 238, "a b", "-o", ":smile:", "a\nb", "%s", "{0}", '"'):
        for arguments in (PREDICT, EVALUATE, TRAIN):
            yield f"{arguments[0]}: called {name[:9]!r}", arguments, lambda folder, name=name: called(folder, name)


def command_lines() -> Iterator[Odd]:
    """Arguments that the command refuses before it reads a file."""
    for arguments in (
        ["predict", "trained", "-i", "data/images", "-o", "data/images", "--overwrite"],
        ["predict", "trained", "-i", "data/images/case0.nii.gz", "-o", "data/images", "--overwrite"],
        ["predict", "data", "-i", "scans", "-o", "found"],
        ["predict", "trained", "-i", "nowhere", "-o", "found"],
        ["predict", "trained", "-i", "scans", "-o", "config.json"],
        ["train", "--data", "data", "--out", "config.json"],
        ["train", "--data", "data", "--out", "trained"],
        ["train", "--data", "config.json", "--out", "new"],
        ["train", "--resume", "--out", "nowhere"],
        ["train", "--resume", "--out", "data"],
        ["evaluate", "data/images", "config.json"],
        ["evaluate", "nowhere", "data/labels"],
        ["report", "data"],
        ["report", "trained", "--data", "nowhere"],
        ["compare", "--mechanisms", "cbm", "--out", "all", "--data", "data"],
        ["compare", "--mechanisms", "eca", "--out", "trained", "--data", "data"],
        ["simulate", "--out", "data"],
        ["simulate", "--out", "config.json"],
    ):
        yield " ".join(arguments), arguments, lambda folder: None


KINDS = {"settings": settings, "files of a run": runs, "scans and labels": scans, "command lines": command_lines}


def odd_inputs(kind: str, inputs: Path, count: int | None) -> Row:
    """Runs the inputs of a kind and counts the outcomes; a right result counts as recovered."""
    folder = inputs.parent / "work"
    needs = Scene("", [], same, "", ("data", "trained", "config.json"))
    chosen, recovered, problems = spread(KINDS[kind](), count), 0, []
    for name, arguments, make in chosen:
        stage(inputs, needs, folder)
        scan_of(folder)
        make(folder)
        ended = command(arguments, folder)
        recovered += ended.code == 0
        if ended.code and (problem := refused(ended, folder)):
            problems.append(f"{name}: {problem}")
        elif ended.code is None:
            problems.append(f"{name}: does not end")
    wrong = len(problems)
    return Row(f"odd inputs: {kind}", len(chosen), recovered, len(chosen) - recovered - wrong, wrong, problems)


def cut(path: Path, content: bytes | None) -> None:
    """Replaces the content of a file, or cuts it in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)


def save(path: Path, data: np.ndarray, scale: float = 1.0) -> None:
    """Saves a float32 scan."""
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([scale, scale, scale, 1.0])), path)


def scan_of(folder: Path) -> Path:
    """Makes a folder of two scans, copied from the labels; returns the first, which the faults change."""
    (folder / "scans").mkdir(exist_ok=True)
    for index in (0, 1):
        labels = folder / "data" / "labels" / f"case{index}.nii.gz"
        if not (folder / "scans" / labels.name).exists() and labels.exists():
            (folder / "scans" / labels.name).write_bytes(labels.read_bytes())
    return folder / "scans" / "case0.nii.gz"


def called(folder: Path, name: str) -> None:
    """Renames the files of the first case."""
    for part in ("data/images", "data/labels", "scans"):
        (folder / part / "case0.nii.gz").rename(folder / part / f"{name}.nii.gz")


def unfinished(folder: Path, keep: str = "") -> None:
    """Makes the run look as if it had been stopped after its last epoch."""
    for name in {"model.safetensors", "validation/scores.json"} - {keep}:
        (folder / "trained" / name).unlink(missing_ok=True)
