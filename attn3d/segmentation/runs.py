"""The folder of a training: its files, and the network, data set and cases that they describe."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from attn3d.segmentation.datasets import Case, Dataset, find_dataset, read_splits
from attn3d.segmentation.datasets.layouts import decathlon, nnunet
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import finished_file, read_json, write_json
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import create_network, not_finite
from attn3d.segmentation.settings import Configuration

PARTS = ("fingerprint.json", "split.json", "config.json")  # the files of a new run; the last one makes the folder a run
SPLITS = "splits.json"  # in the folder of a cross-validation or of a comparison


class Run:
    """A run folder.

    Its files are ``config.json``, ``fingerprint.json`` and ``split.json``; ``metrics.csv`` with a row for each epoch;
    ``last.ckpt``, to resume the training; ``best.safetensors``, the weights of the best validation;
    ``model.safetensors``, the last weights, when the training is finished; ``validation/`` with the predictions and
    scores of the held-out cases; and ``report.html``.

    Args:
        folder: the run folder.
        config: the settings of the run.

    Attributes:
        checkpoint: the checkpoint to resume from.
        weights: the last weights.
        best_weights: the weights of the best validation.
        scores: the scores of the held-out cases.
    """

    def __init__(self, folder: Path, config: Configuration):
        self.folder, self.config = folder, config
        self.checkpoint = folder / "last.ckpt"
        self.weights, self.best_weights = folder / "model.safetensors", folder / "best.safetensors"
        self.scores = folder / "validation" / "scores.json"

    @classmethod
    def open(cls, folder: Path | str, data: Path | str | None = None) -> "Run":
        """Opens the run in a folder.

        Args:
            folder: the run folder.
            data: the folder of its data set, if it was moved.

        Raises:
            FileError: when the folder has no run, or a run of another version.
        """
        folder = Path(folder)
        config = Configuration.read(folder / "config.json")
        return cls(folder, config if data is None else config.model_copy(update={"data": str(Path(data).resolve())}))

    @classmethod
    def create(
        cls, folder: Path, config: Configuration, fingerprint: Mapping[str, Any], split: Mapping[str, list[str]]
    ) -> "Run":
        """Creates the folder. ``config.json`` is written last, since it makes the folder a run."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(PARTS, (fingerprint, split, config.as_dict()), strict=True):
            write_json(folder / name, content)
        return cls(folder, config)

    @property
    def finished(self) -> bool:
        """Whether the training and the scoring are finished."""
        return self.weights.exists() and self.scores.exists()

    @property
    def darkest(self) -> list[float]:
        """The ``darkest`` of the training scans; empty if the folder has no such fingerprint."""
        with suppress(FileError):
            return read_json(self.folder / PARTS[0], "darkest")["darkest"]
        return []

    def new_network(self) -> nn.Module:
        """A new network with the settings of the run."""
        config = self.config
        return create_network(config.network, **config.network_shape, attention=config.attention, at=config.at)

    def network(self, *, best: bool = False) -> nn.Module:
        """The trained network, in evaluation mode on the CPU.

        Args:
            best: whether to use the weights of the best validation instead of the last ones.

        Raises:
            FileError: when the training is not finished, or the weights are of another network or not finite.
        """
        if not self.weights.exists():
            raise FileError(self.weights, f"does not exist; {how_to_finish(self.folder)}")
        weights, net = self.best_weights if best else self.weights, self.new_network()
        if not weights.exists():
            raise FileError(weights, "does not exist: the training was never validated; set `validate_every` lower")
        try:
            load_model(net, weights)
        except SafetensorError as error:
            raise FileError(weights, f"is damaged: {error}; train again") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(weights, f"does not fit the network of config.json: {reason}") from error
        if name := not_finite(net.state_dict()):
            raise FileError(weights, f"its weights {name!r} are not finite; train again")
        return net.eval()

    def write_network(self, net: nn.Module, *, best: bool = False) -> None:
        """Saves the weights of a network as those of the best validation or as the last ones.

        Raises:
            FileError: when they cannot be written.
        """
        weights = self.best_weights if best else self.weights
        with finished_file(weights) as unfinished:
            try:
                net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # modules support it too
                save_model(net, str(unfinished))
            except SafetensorError as error:
                raise FileError(weights, f"cannot be written: {error}") from error

    def check_checkpoint(self, task: nn.Module) -> None:
        """Raises a `FileError` if the checkpoint is damaged, of another network, or has weights that are not finite."""
        again = "remove it to train from the start"
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:  # pickle raises many kinds for text, empty or incomplete files
            raise FileError(self.checkpoint, f"is damaged, or is not a checkpoint; {again}") from error
        try:
            task.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(self.checkpoint, f"does not fit the network of config.json ({reason}); {again}") from error
        if name := not_finite(state):
            raise FileError(self.checkpoint, f"its weights {name!r} are not finite; {again}")

    def dataset(self) -> Dataset:
        """The data set of the training.

        Raises:
            FileError: when its folder does not exist, or has another data set.
        """
        if not Path(self.config.data).is_dir():
            raise FileError(
                self.config.data, f"does not exist; {self.folder} was trained on it, give its new folder (--data)"
            )
        dataset = find_dataset(self.config.data, labelled=True)
        if dataset.labels != self.config.labels:
            raise FileError(
                self.config.data,
                f"has {dataset.labels}, but {self.folder} was trained on {self.config.labels}; give its data set",
            )
        return dataset

    def cases(self, part: str, dataset: Dataset | None = None) -> list[Case]:
        """The training cases ("training") or the held-out cases ("validation").

        Raises:
            FileError: when ``split.json`` does not name them, or a case is not in the data set.
        """
        known = {case.name: case for case in (dataset or self.dataset()).cases}
        split = self.folder / "split.json"
        names = read_json(split, part)[part]
        if not isinstance(names, list) or not names:
            raise FileError(split, f"its {part!r} must be a list of cases, got {names!r}")
        if lost := [name for name in names if name not in known]:
            raise FileError(self.config.data, f"has no case {lost[0]!r}, which is in the split of the run")
        return [known[name] for name in names]


def how_to_finish(folder: Path) -> str:
    """Advice for a run that is not finished: the whole command, or the kind of the one that trains several runs."""
    folder = folder.resolve()
    if all((folder.parent / name).exists() for name in (SPLITS, "settings.json")):  # of a series of trainings
        command = "train --folds" if folder.name.startswith("fold_") else "compare"
        return f"finish the training with the same `attn3d {command}` command as before"
    return f"finish the training with `attn3d train --resume --out {shlex.quote(str(folder))}`"


def read_labels(path: Path | str) -> Labels:
    """Reads the meaning of label values from a run or a data set: its folder, ``config.json`` or ``dataset.json``.

    A ``dataset.json`` has the form of nnU-Net v2 or, with a list ``training``, of the Decathlon.

    Raises:
        FileError: when the path does not exist, or has no names of labels.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(path, "does not exist; give a dataset.json, or the folder of a run or a data set")
    path = path / "config.json" if (path / "config.json").exists() else path
    if path.is_file():
        content = read_json(path, "labels")
        if "format" in content:
            return Configuration.read(path).labels
        return (decathlon if decathlon.is_decathlon(content) else nnunet).read_labels(path, content)
    labels = find_dataset(path).labels
    if not labels.names:
        raise FileError(path, "has no names of labels; give a dataset.json")
    return labels


def open_runs(folder: Path | str) -> list[Run]:
    """Opens the run in a folder, or the runs of all folds of a cross-validation.

    Raises:
        FileError: when the folder has neither, a fold was not begun, or a run is of another version.
    """
    splits = Path(folder) / SPLITS
    if not (splits.exists() and (splits.parent / "fold_0").exists()):  # a comparison has splits, but no folds
        return [Run.open(folder)]
    folders = [splits.parent / f"fold_{fold}" for fold in range(len(read_splits(splits)))]
    for one in folders:
        if not one.exists():
            raise FileError(one, f"does not exist; {how_to_finish(one)}")
    return [Run.open(one) for one in folders]
