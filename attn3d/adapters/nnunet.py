"""Attention in nnU-Net v2: a network for its plans files, and the command that writes it into one.

python -m attn3d.adapters.nnunet nnUNetPlans.json --attention cbam --at skip
"""

import copy
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Annotated, Any

import torch
import typer
from torch import nn

from attn3d.insertion import attention_parameters, insert_attention, inserted_attention

NETWORK = "attn3d.adapters.nnunet.UNetWithAttention"
Plans = dict[str, Any]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def UNetWithAttention(
    input_channels: int,
    num_classes: int,
    *,
    network: str,
    attention: Iterable[Mapping[str, Any]],
    patch_size: Sequence[int],
    **architecture: Any,
) -> nn.Module:
    """A network of nnU-Net with attention in it; nnU-Net calls it as the class that its plans file names.

    What comes back is an object of nnU-Net's own class: deep supervision, keys of the state and the loading of
    pretrained weights are as without attention. It is initialised already, as nnU-Net's own initialisation would
    also overwrite the start that belongs to a mechanism, such as the zeros of ``gc``.

    Args:
        input_channels: of the image.
        num_classes: of the logits.
        network: import path of the class, such as
            "dynamic_network_architectures.architectures.unet.PlainConvUNet" or ".ResidualEncoderUNet".
        attention: arguments of `insert_attention`, a dictionary for each call.
        patch_size: of the configuration, at which the sites are found and ``max_voxels`` counts.
        architecture: arguments of the class, ``deep_supervision`` among them.

    Returns:
        the network.

    Raises:
        ValueError: when there is no such class, or as `insert_attention` does.
    """
    cls: Any = locate(network)
    if cls is None:
        raise ValueError(f"`network` {network!r} cannot be imported; install nnU-Net, or correct the path")
    net = cls(input_channels=input_channels, num_classes=num_classes, **architecture)
    if hasattr(net, "initialize"):
        net.apply(net.initialize)
        net.initialize = _leave
    for item in attention:
        insert_attention(net, **{"input_shape": (1, input_channels, *patch_size)} | dict(item))
    return net


def _leave(module: nn.Module) -> None:
    """What nnU-Net applies to every module for a start: it has been made."""


def add_configuration(
    plans: Plans, configuration: str, name: str, attention: Mapping[str, Any], overwrite: bool = False
) -> nn.Module:
    """Adds a configuration with attention to the plans, in place.

    Args:
        plans: what a plans file holds.
        configuration: the one that the new one inherits from. If that has attention, the new one has both.
        name: of the new one.
        attention: arguments of `insert_attention`.
        overwrite: whether a configuration of that name may go.

    Returns:
        the network on the meta device, with one channel and two classes, as a proof that it can be built.

    Raises:
        ValueError: when a configuration is missing, or there already, or the network cannot be built.
    """
    known = plans["configurations"]
    if name in known and (not overwrite or name == configuration):
        another = "give another name" if name == configuration else "give another name, or overwrite it"
        raise ValueError(f"`name` {name!r} is a configuration of the plans already; {another}")
    parent = resolved(known, configuration)
    if "architecture" not in parent:
        raise ValueError(
            f"`configuration` {configuration!r} has no 'architecture': plan again with nnU-Net 2.4 or later"
        )
    block = copy.deepcopy(parent["architecture"])
    arguments = block["arch_kwargs"]
    if block["network_class_name"] != NETWORK:
        arguments |= {"network": block["network_class_name"], "attention": [], "patch_size": parent["patch_size"]}
        block["network_class_name"] = NETWORK
    arguments["attention"].append(dict(attention))
    net = _on_meta(block)
    known[name] = {"inherits_from": configuration, "architecture": block}
    return net


def resolved(known: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A configuration with what it inherits; as in nnU-Net, top-level entries replace those of the parent."""
    if name not in known:
        raise ValueError(f"`configuration` {name!r} is not in the plans, which have {', '.join(known)}")
    parent = known[name].get("inherits_from")
    return ({} if parent is None else resolved(known, parent)) | dict(known[name])


def _on_meta(block: Mapping[str, Any]) -> nn.Module:
    """The network of an ``architecture`` entry."""
    with torch.device("meta"):
        return with_classes(block, 1, 2)


def with_classes(block: Mapping[str, Any], input_channels: int, num_classes: int) -> nn.Module:
    """The network of an ``architecture`` entry with attention, for so many channels and classes."""
    arguments = dict(block["arch_kwargs"])
    for key in block["_kw_requires_import"]:
        arguments[key] = arguments[key] and locate(arguments[key])
    return UNetWithAttention(input_channels, num_classes, **arguments)


@app.command()
def write_configuration(
    plans: Annotated[Path, typer.Argument(help="A plans file, such as nnUNetPlans.json.")],
    attention: Annotated[str, typer.Option(help="Name of the mechanism.")],
    at: Annotated[list[str], typer.Option(help="A kind of site, or path:<path>; may be given again.")],
    stages: Annotated[
        list[int] | None, typer.Option(help="Those of each kind, -1 the last; may be given again [all].")
    ] = None,
    options: Annotated[str, typer.Option(help="Of the mechanism, in JSON: '{\"reduction\": 8}'.")] = "{}",
    identity: Annotated[bool, typer.Option("--identity", help="Start as the network without attention.")] = False,
    max_voxels: Annotated[int | None, typer.Option(help="Leave out sites with larger maps.")] = None,
    configuration: Annotated[str, typer.Option(help="To inherit from.")] = "3d_fullres",
    name: Annotated[str | None, typer.Option(help="Of the new one [CONFIGURATION_ATTENTION].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a configuration of that name.")] = False,
) -> None:
    """Add a configuration with attention to a plans file of nnU-Net v2."""
    name = name or f"{configuration}_{attention}"
    try:
        content = read_plans(plans)
        item = {"spec": [attention, _json(options, "options")], "at": at, "identity": identity}
        item |= {"stages": stages} if stages else {}
        item |= {} if max_voxels is None else {"max_voxels": max_voxels}
        net = add_configuration(content, configuration, name, item, overwrite)
        with replaced(plans) as unfinished:
            unfinished.write_text(json.dumps(content, indent=4) + "\n")
    except (OSError, TypeError, ValueError) as error:
        print(f"nnunet: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error
    sites = [site for call in inserted_attention(net) for site in call["at"]]
    parameters = sum(parameter.numel() for parameter in attention_parameters(net))
    print(f"{plans}: {name} has attention at {', '.join(sites)}; {parameters:,} parameters more")


def read_plans(path: Path) -> Plans:
    """What a plans file holds.

    Raises:
        ValueError: when it is none or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`plans` {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    content = _json(text, str(path))
    if "configurations" not in content:
        raise ValueError(f"{path}: this is no plans file of nnU-Net v2; it has no 'configurations'")
    return content


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{source}` must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{source}` must be a JSON object, got {text[:40]!r}")
    return content


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when it is whole."""
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    app()
