"""The folder of a training: what is in it and what it gives back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from attn3d.segmentation.datasets import Case, Dataset, find_dataset, read_splits
from attn3d.segmentation.datasets.layouts import nnunet
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import create_network, not_finite
from attn3d.segmentation.settings import Configuration
from attn3d.segmentation.writing import finished_file, read_json, write_json

PARTS = ("fingerprint.json", "split.json", "config.json")  # that make a run, the last of them for good
SPLITS = "splits.json"  # of a folder with a run for each fold


class Run:
    """A run folder.

    ``config.json``, ``fingerprint.json``, ``split.json``; ``metrics.csv``, a row for each epoch; ``last.ckpt``, to
    resume; ``best.safetensors``, the weights of its best validation; ``model.safetensors``, the last, once it is
    trained; ``validation/``, what it found in the held-out cases and how well; ``report.html``.

    Args:
        folder: where it is.
        config: its settings.

    Attributes:
        checkpoint: what a training resumes from.
        weights: what it learnt.
        best_weights: what it had learnt when it was validated best.
        scores: how well it did on the held-out cases.
    """

    def __init__(self, folder: Path, config: Configuration):
        self.folder, self.config = folder, config
        self.checkpoint = folder / "last.ckpt"
        self.weights, self.best_weights = folder / "model.safetensors", folder / "best.safetensors"
        self.scores = folder / "validation" / "scores.json"

    @classmethod
    def open(cls, folder: Path | str, data: Path | str | None = None) -> "Run":
        """The run in a folder.

        Args:
            folder: where it is.
            data: where its data set is now, if it was moved.

        Raises:
            FileError: when there is none, or one of another version.
        """
        folder = Path(folder)
        config = Configuration.read(folder / "config.json")
        return cls(folder, config if data is None else config.model_copy(update={"data": str(Path(data).resolve())}))

    @classmethod
    def create(
        cls, folder: Path, config: Configuration, fingerprint: Mapping[str, Any], split: Mapping[str, list[str]]
    ) -> "Run":
        """Makes the folder; its ``config.json``, which makes it a run, is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(PARTS, (fingerprint, split, config.as_dict()), strict=True):
            write_json(folder / name, content)
        return cls(folder, config)

    @property
    def finished(self) -> bool:
        """Whether it is trained and scored."""
        return self.weights.exists() and self.scores.exists()

    def new_network(self) -> nn.Module:
        """The network as it starts."""
        config = self.config
        return create_network(
            config.network,
            config.in_channels,
            config.out_channels,
            strides=config.strides,
            kernels=config.kernels,
            width=config.width,
            deep_supervision=config.deep_supervision,
            attention=config.attention,
            at=config.at,
        )

    def network(self, *, best: bool = False) -> nn.Module:
        """The trained network, in evaluation mode on the CPU.

        Args:
            best: with the weights of its best validation, rather than the last ones.

        Raises:
            FileError: when it is not trained to the end, the weights are those of another network or not finite.
        """
        if not self.weights.exists():
            raise FileError(self.weights, "is not there; finish the training with `attn3d train --resume`")
        weights, net = self.best_weights if best else self.weights, self.new_network()
        if not weights.exists():
            raise FileError(weights, "is not there: the training was never validated; set `validate_every` lower")
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
        """Keeps the weights of a network, as those of the best validation or as the last ones.

        Raises:
            FileError: when they cannot be written.
        """
        weights = self.best_weights if best else self.weights
        with finished_file(weights) as unfinished:
            try:
                net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # modules have it too
                save_model(net, str(unfinished))
            except SafetensorError as error:
                raise FileError(weights, f"cannot be written: {error}") from error

    def check_checkpoint(self, task: nn.Module) -> None:
        """Checks that a training can go on from what is there.

        Raises:
            FileError: when the checkpoint is damaged, or that of another network.
        """
        again = "remove it to train from the start"
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:  # of a text, an empty or a cut file; pickle has many
            raise FileError(self.checkpoint, f"is no checkpoint, or a damaged one; {again}") from error
        try:
            task.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(self.checkpoint, f"does not fit the network of config.json ({reason}); {again}") from error

    def dataset(self) -> Dataset:
        """What it was trained on.

        Raises:
            FileError: when it is not where it was, or is another one.
        """
        if not Path(self.config.data).is_dir():
            raise FileError(self.config.data, f"the data of {self.folder} are not there; say where they are (--data)")
        dataset = find_dataset(self.config.data, labelled=True)
        if dataset.labels != self.config.labels:
            raise FileError(self.config.data, f"has other labels than {self.folder} was trained on; give its data")
        return dataset

    def cases(self, part: str, dataset: Dataset | None = None) -> list[Case]:
        """The cases that it was trained ("training") or held out ("validation") on.

        Raises:
            FileError: when ``split.json`` does not say, or a case is not in the data set any more.
        """
        known = {case.name: case for case in (dataset or self.dataset()).cases}
        split = self.folder / "split.json"
        names = read_json(split, part)[part]
        if not isinstance(names, list) or not names:
            raise FileError(split, f"its {part!r} must be a list of cases, got {names!r}")
        if lost := [name for name in names if name not in known]:
            raise FileError(self.config.data, f"has no case {lost[0]!r} any more, which this run was split by")
        return [known[name] for name in names]


def read_labels(path: Path | str) -> Labels:
    """What label values mean: of nnU-Net's ``dataset.json``, or of the folder of a run or a data set.

    Raises:
        FileError: when it does not say.
    """
    path = Path(path)
    if path.is_file():
        return nnunet.read_labels(path, read_json(path, "labels"))
    labels = Run.open(path).config.labels if (path / "config.json").exists() else find_dataset(path).labels
    if not labels.names:
        raise FileError(path, "says of no label what it means; give a dataset.json")
    return labels


def open_runs(folder: Path | str) -> list[Run]:
    """The run in a folder, or those of all folds of a cross-validation.

    Raises:
        FileError: when there is neither, or a run is one of another version.
    """
    splits = Path(folder) / SPLITS
    if not splits.exists():
        return [Run.open(folder)]
    return [Run.open(splits.parent / f"fold_{fold}") for fold in range(len(read_splits(splits)))]
