"""Attention in nnU-Net v2: a network for its plans files, and a command that adds it to a plans file.

python -m attn3d.adapters.nnunet nnUNetPlans.json --attention cbam --at skip
"""

import copy
import json
import os
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Annotated, Any

import torch
import typer
from torch import nn

from attn3d.factory import find
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
    """Builds a network of nnU-Net with inserted attention. Plans files name this function as the network class.

    The result has nnU-Net's own class: deep supervision, state dict keys and the loading of pretrained weights work as
    without attention. It is already initialised, because nnU-Net's initialisation would also overwrite the initial
    values of mechanisms, such as the zeros of ``gc``.

    Args:
        input_channels: number of channels of the image.
        num_classes: number of channels of the logits.
        network: import path of the class, such as
            "dynamic_network_architectures.architectures.unet.PlainConvUNet" or ".ResidualEncoderUNet".
        attention: arguments of `insert_attention`, a dictionary for each call.
        patch_size: patch size of the configuration, which is the shape for finding sites and for ``max_voxels``.
        architecture: arguments of the class, including ``deep_supervision``.

    Returns:
        the network.

    Raises:
        ValueError: if the class cannot be imported, and as in `insert_attention`.
    """
    cls: Any = locate(network)
    if cls is None:
        raise ValueError(f"`network` must be importable, got {network!r}; install nnU-Net, or correct the path")
    net = cls(input_channels=input_channels, num_classes=num_classes, **architecture)
    if hasattr(net, "initialize"):
        net.apply(net.initialize)
        net.initialize = _leave
    for item in attention:
        insert_attention(net, **{"input_shape": (1, input_channels, *patch_size)} | dict(item))
    return net


def _leave(module: nn.Module) -> None:
    """Replaces nnU-Net's initialisation of modules, which has been applied already."""


def add_configuration(
    plans: Plans, configuration: str, name: str, attention: Mapping[str, Any], overwrite: bool = False
) -> nn.Module:
    """Adds a configuration with attention to the plans, in place.

    Args:
        plans: content of a plans file.
        configuration: name of the parent configuration. If it has attention, the new one has both.
        name: name of the new configuration.
        attention: arguments of `insert_attention`.
        overwrite: whether an existing configuration of that name may be replaced.

    Returns:
        the network on the meta device, with one channel and two classes, which shows that it can be built.

    Raises:
        ValueError: if the parent is missing, the name is in use, or the network cannot be built.
    """
    known = plans["configurations"]
    parent = resolved(known, configuration)
    is_ancestor = name in _lineage(known, configuration)
    if name in known and (not overwrite or is_ancestor):
        advice = "use another name" if is_ancestor else "use another name, or overwrite it"
        raise ValueError(f"`name` {name!r} is already a configuration of the plans; {advice}")
    if "architecture" not in parent:
        raise ValueError(
            f"`configuration` {configuration!r} has no 'architecture': plan again with nnU-Net 2.4 or later"
        )
    block = copy.deepcopy(parent["architecture"])
    arguments = block["arch_kwargs"]
    if block["network_class_name"] != NETWORK:
        arguments |= {"network": block["network_class_name"], "attention": []}
        block["network_class_name"] = NETWORK
    arguments["patch_size"] = parent["patch_size"]
    arguments["attention"].append(dict(attention))
    with torch.device("meta"):
        net = with_classes(block, 1, 2)
    known[name] = {"inherits_from": configuration, "architecture": block}
    return net


def resolved(known: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns a configuration with inherited entries. As in nnU-Net, top-level entries replace those of the parent."""
    return dict(ChainMap(*(known[each] for each in _lineage(known, name))))


def _lineage(known: Mapping[str, dict[str, Any]], name: str) -> list[str]:
    """Returns the names of a configuration, of its parent, and so on."""
    lineage: list[str] = []
    each: str | None = name
    while each is not None:
        if each in lineage:
            raise ValueError(f"`configuration` {name!r} inherits from itself: {', '.join([*lineage, each])}")
        if each not in known:
            raise ValueError(f"`configuration` {each!r} is not in the plans, which have {', '.join(known)}")
        lineage.append(each)
        each = known[each].get("inherits_from")
    return lineage


def with_classes(block: Mapping[str, Any], input_channels: int, num_classes: int) -> nn.Module:
    """Builds the network of an ``architecture`` entry with attention for given numbers of channels and classes."""
    arguments = dict(block["arch_kwargs"])
    for key in block["_kw_requires_import"]:
        arguments[key] = arguments[key] and locate(arguments[key])
    return UNetWithAttention(input_channels, num_classes, **arguments)


@app.command()
def write_configuration(
    plans: Annotated[Path, typer.Argument(help="A plans file, such as nnUNetPlans.json.")],
    attention: Annotated[str, typer.Option(help="Name of the mechanism.")],
    at: Annotated[list[str], typer.Option(help="Kind of site, or path:<path>; may be repeated.")],
    stages: Annotated[
        list[int] | None, typer.Option(help="Stages of each kind, -1 for the last; may be repeated (default: all).")
    ] = None,
    options: Annotated[str, typer.Option(help="Options of the mechanism in JSON: '{\"reduction\": 8}'.")] = "{}",
    identity: Annotated[bool, typer.Option("--identity", help="Keep the network's output until training.")] = False,
    max_voxels: Annotated[int | None, typer.Option(help="Skip sites with larger maps.")] = None,
    configuration: Annotated[str, typer.Option(help="Configuration to inherit from.")] = "3d_fullres",
    name: Annotated[str | None, typer.Option(help="Name of the new one [CONFIGURATION_ATTENTION].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a configuration of that name.")] = False,
) -> None:
    """Add a configuration with attention to a plans file of nnU-Net v2."""
    name = name or f"{configuration}_{attention}"
    try:
        content = read_plans(plans)
        find(attention, "attention")
        item = {"spec": [attention, _json(options, "options")], "at": at, "identity": identity}
        if stages:
            item["stages"] = stages
        if max_voxels is not None:
            item["max_voxels"] = max_voxels
        net = add_configuration(content, configuration, name, item, overwrite)
        with replaced(plans) as unfinished:
            unfinished.write_text(json.dumps(content, indent=4) + "\n")
    except (OSError, TypeError, ValueError) as error:
        print(f"nnunet: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error
    sites = [site for call in inserted_attention(net) for site in call["at"]]
    parameters = sum(parameter.numel() for parameter in attention_parameters(net))
    print(f"{plans}: {name} has attention at {', '.join(sites)}; {parameters:,} more parameters")


def read_plans(path: Path) -> Plans:
    """Reads a plans file.

    Raises:
        ValueError: if it is not a plans file or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`plans` {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    content = _json(text, str(path))
    if "configurations" not in content:
        raise ValueError(f"{path}: this is not a plans file of nnU-Net v2; it has no 'configurations'")
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
    """Yields a temporary path to write to. The file replaces ``path`` if no error occurs."""
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    app()
