"""Weights that a training starts with: those of another run, or of a checkpoint."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.runs import Run

logger = logging.getLogger("attn3d")
_STATES = ("state_dict", "model_state_dict", "network_weights", "model", "network")  # where checkpoints keep weights
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.")  # of wrappers, such as DDP, compiled modules and Lightning


def start_from(net: nn.Module, path: Path | str) -> None:
    """Gives a network those weights of a run or a checkpoint whose name and shape it has; the others stay as they are.

    So a network may have attention or classes that the checkpoint has not. How many fitted is logged.

    Args:
        net: what is trained.
        path: a run folder, or a file of PyTorch (a state dictionary, or a checkpoint that holds one, as those of
            Lightning, MONAI and nnU-Net) or of safetensors.

    Raises:
        FileError: when it is not there, cannot be read or no weight of it fits.
    """
    path = Path(path)
    file = Run.open(path).weights if path.is_dir() else path
    own = net.state_dict()
    given = _read(file, own)
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        there = f"it has {next(iter(given))!r}, the network {next(iter(own))!r}"
        raise FileError(file, f"none of its weights has the name and the shape of one of the network's: {there}")
    net.load_state_dict(fitting, strict=False)
    logger.info("%d of %d weights start from %s", len(fitting), len(own), file)


def _read(file: Path, own: Collection[str]) -> dict[str, Tensor]:
    """The weights in a file by name, without prefixes of wrappers that the network's ``own`` names have not."""
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of a text, an empty or a cut file; pickle has many
        raise FileError(file, "is no checkpoint of tensors alone, or a damaged one") from error
    while isinstance(content, Mapping) and (inner := next((key for key in _STATES if key in content), None)):
        content = content[inner]
    weights = {}
    if isinstance(content, Mapping):
        weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise FileError(file, "holds no weights by name")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) and name not in own for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
