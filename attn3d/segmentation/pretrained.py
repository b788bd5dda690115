"""Starts a training from the weights of another run or of a checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attn3d.insertion.checkpoints import without_wrapper, wrapper_prefix
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.runs import Run

_STATES = ("state_dict", "model_state_dict", "network_weights", "model", "network")  # keys of weights in checkpoints


def start_from(net: nn.Module, path: Path | str) -> str:
    """Copies the weights of a run or a checkpoint that have the same name and shape in the network.

    All other weights of the network are unchanged, such as those of attention or of classes that the checkpoint lacks.

    Args:
        net: the network to train.
        path: a run folder, a file of PyTorch (a state dictionary, or a checkpoint that contains one, such as those of
            Lightning, MONAI and nnU-Net), or a safetensors file.

    Returns:
        How many weights were copied, as a sentence.

    Raises:
        FileError: when the file does not exist, cannot be read, or none of its weights fits.
    """
    path = Path(path)
    file = Run.open(path).weights if path.is_dir() else path
    own = net.state_dict()
    given = _read(file, own)
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        there = f"its first is {next(iter(given))!r}, that of the network {next(iter(own))!r}"
        raise FileError(file, f"none of its weights has the name and shape of a weight of the network: {there}")
    net.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} weights start from {file}"


def _read(file: Path, own: Collection[str]) -> dict[str, Tensor]:
    """The weights in a file by name, without the prefix that a wrapper added to the network's ``own`` names."""
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # pickle raises many kinds for text, empty or incomplete files
        raise FileError(file, "is damaged, or is not a checkpoint that contains only tensors") from error
    while isinstance(content, Mapping) and (inner := next((key for key in _STATES if key in content), None)):
        content = content[inner]
    weights = {}
    if isinstance(content, Mapping):
        weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise FileError(file, "contains no weights by name")
    prefix = wrapper_prefix(weights, own)
    return {without_wrapper(name, prefix): value for name, value in weights.items()}
