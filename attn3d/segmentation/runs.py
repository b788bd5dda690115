"""The folder of a training: what is in it and what it gives back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from attn3d.segmentation.configuration import Configuration
from attn3d.segmentation.datasets import Case, Dataset, find_dataset
from attn3d.segmentation.files import FileError, finished_file
from attn3d.segmentation.networks import create_network, not_finite


class Run:
    """A run folder.

    ``config.json``, ``fingerprint.json``, ``split.json``; ``metrics.csv``, a row for each epoch; ``last.ckpt``, to
    resume; ``model.safetensors``, once it is trained; ``validation/``, what it found in the held-out cases and how
    well; ``report.html``.

    Args:
        folder: where it is.
        config: its settings.
    """

    def __init__(self, folder: Path, config: Configuration):
        self.folder, self.config = folder, config

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """The run in a folder.

        Raises:
            FileError: when there is none, or one of another version.
        """
        folder = Path(folder)
        return cls(folder, Configuration.read(folder / "config.json"))

    @classmethod
    def create(
        cls, folder: Path, config: Configuration, fingerprint: Mapping[str, Any], split: Mapping[str, list[str]]
    ) -> "Run":
        """Makes the folder; its ``config.json``, which makes it a run, is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("fingerprint", fingerprint), ("split", split), ("config", config.as_dict())):
            write_json(folder / f"{name}.json", content)
        return cls(folder, config)

    @property
    def checkpoint(self) -> Path:
        """What a training resumes from."""
        return self.folder / "last.ckpt"

    @property
    def weights(self) -> Path:
        """What it learnt."""
        return self.folder / "model.safetensors"

    @property
    def scores(self) -> Path:
        """How well it did on the held-out cases."""
        return self.folder / "validation" / "scores.json"

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
            attention=config.attention,
            at=config.at,
        )

    def network(self) -> nn.Module:
        """The trained network, in evaluation mode on the CPU.

        Raises:
            FileError: when it is not trained to the end, the weights are those of another network or not finite.
        """
        if not self.weights.exists():
            raise FileError(self.weights, "is not there; finish the training with `attn3d train --resume`")
        net = self.new_network()
        try:
            load_model(net, self.weights)
        except SafetensorError as error:
            raise FileError(self.weights, f"is damaged: {error}; train again") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(self.weights, f"does not fit the network of config.json: {reason}") from error
        if name := not_finite(net.state_dict()):
            raise FileError(self.weights, f"its weights {name!r} are not finite; train again")
        return net.eval()

    def write_network(self, net: nn.Module) -> None:
        """Keeps the weights of the trained network."""
        with finished_file(self.weights) as unfinished:
            save_model(net, str(unfinished))

    def dataset(self) -> Dataset:
        """What it was trained on."""
        return find_dataset(self.config.data, labelled=True)

    def cases(self, part: str, dataset: Dataset | None = None) -> list[Case]:
        """The cases that it was trained ("training") or held out ("validation") on.

        Raises:
            FileError: when a case is not in the data set any more.
        """
        known = {case.name: case for case in (dataset or self.dataset()).cases}
        names = json.loads((self.folder / "split.json").read_text(encoding="utf-8"))[part]
        if lost := [name for name in names if name not in known]:
            raise FileError(self.config.data, f"has no case {lost[0]!r} any more, which this run was split by")
        return [known[name] for name in names]


def write_json(path: Path, content: Any) -> None:
    """Writes plain data; nothing is there before the file is whole."""
    with finished_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
