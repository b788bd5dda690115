"""Converts a checkpoint of nnU-Net v2 to a configuration with attention, for ``-pretrained_weights``.

python -m attn3d.adapters.nnunet_checkpoint nnUNetPlans.json checkpoint_final.pth with_attention.pth
"""

import io
import pickle
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from attn3d.adapters.nnunet import NETWORK, Plans, read_plans, replaced, resolved, with_classes
from attn3d.insertion import load_pretrained

# Exceptions from unpickling a file that is truncated, of another kind, or needs classes that are not installed.
_UNREADABLE = (AttributeError, EOFError, ImportError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def convert(plans: Plans, configuration: str, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Adds the initial weights of attention to the weights of a network without attention.

    Args:
        plans: content of a plans file.
        configuration: a configuration with attention, see `attn3d.adapters.nnunet.add_configuration`.
        weights: the ``network_weights`` of a checkpoint.

    Returns:
        the weights of the network with attention, and the new keys.

    Raises:
        ValueError: if the configuration has no attention, or the weights are those of another network.
    """
    block = resolved(plans["configurations"], configuration).get("architecture", {})
    if block.get("network_class_name") != NETWORK:
        raise ValueError(f"`configuration` {configuration!r} has no attention; add one with attn3d.adapters.nnunet")
    heads = [value for key, value in weights.items() if key.endswith("decoder.seg_layers.0.weight")]
    first = [value for key, value in weights.items() if "encoder" in key and value.dim() > 3]
    if not heads or not first:
        raise ValueError("`checkpoint` must contain a U-Net of nnU-Net; it has no 'decoder.seg_layers.0.weight'")
    net = with_classes(block, first[0].shape[1], heads[0].shape[0])
    new = load_pretrained(net, weights)
    return net.state_dict(), new


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of nnU-Net v2. Like nnU-Net, it unpickles the file: read only files that you trust.

    Raises:
        ValueError: if it is not such a checkpoint or cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except OSError as error:
        raise ValueError(f"`checkpoint` {path} cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise ValueError(f"`checkpoint` {path} is damaged or not a file of PyTorch: {error}") from error
    if not isinstance(content, dict) or "network_weights" not in content:
        raise ValueError(f"`checkpoint` {path} is not a checkpoint of nnU-Net v2; it has no 'network_weights'")
    return content


@app.command()
def convert_checkpoint(
    plans: Annotated[Path, typer.Argument(help="A plans file, such as nnUNetPlans.json.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a configuration without attention.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    configuration: Annotated[str, typer.Option(help="Configuration with attention, to train.")] = "3d_fullres_cbam",
) -> None:
    """Write a checkpoint for nnUNetv2_train -pretrained_weights of a configuration with attention."""
    try:
        if not out.parent.is_dir():
            raise ValueError(f"`out` {out} cannot be written: there is no folder {out.parent}")
        content = read_checkpoint(checkpoint)
        weights, new = convert(read_plans(plans), configuration, content["network_weights"])
        written = io.BytesIO()  # on a full disk, torch.save raises an error that does not name the file
        torch.save({**content, "network_weights": weights}, written)
        with replaced(out) as unfinished:
            unfinished.write_bytes(written.getbuffer())
    except (OSError, TypeError, ValueError) as error:
        print(f"nnunet: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error
    print(f"{out}: {len(weights) - len(new)} tensors of {checkpoint.name}, {len(new)} initial tensors of attention")


if __name__ == "__main__":
    app()
