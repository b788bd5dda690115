"""The commands ``list``, ``sites`` and ``plan``: mechanisms, sites of a network and costs.

Imports are inside the commands, so that the help is fast.
"""

import itertools
import json
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from attn3d.cli.app import one_line_errors
from attn3d.cli.tables import new_table, show


def _size(text: str) -> int:
    """Reads one of three sizes. If only two are given, the third is the name of the next option."""
    if not str(text).isdecimal() or int(text) == 0:
        raise typer.BadParameter(f"must be three sizes such as 96 96 96, got {text!r} as one of them")
    return int(text)


def list_mechanisms(
    channels: Annotated[int, typer.Option(min=1, help="Channels of the map.")] = 64,
    shape: Annotated[tuple[int, int, int], typer.Option(parser=_size, help="Shape of the map in voxels.")] = (
        32,
        32,
        32,
    ),
) -> None:
    """List all mechanisms and their costs at a shape."""
    from attn3d.factory import create_attention
    from attn3d.mechanisms.registry import list_attention
    from attn3d.planning import estimate_cost

    title = f"{channels} channels, {' x '.join(map(str, shape))} voxels, float32"
    table = new_table(title, "Name", "Class", numbers=("Parameters", "Training\nmemory", "Training\nGFLOP"))
    with one_line_errors("list"):
        for name in list_attention():
            module = create_attention(name, spatial_dims=3, channels=channels)
            cost = estimate_cost(module, (1, channels, *shape))
            parameters = sum(parameter.numel() for parameter in module.parameters())
            table.add_row(
                name, type(module).__name__, f"{parameters:,}", in_units(cost.memory), f"{cost.flops / 1e9:,.2f}"
            )
    show(table)


def sites(
    network: Annotated[str, typer.Argument(help="Name of a network in monai.networks.nets, or module:callable.")],
    options: Annotated[str, typer.Option(help="Arguments of the network as JSON.")] = "{}",
    shape: Annotated[
        str, typer.Option(help='Shape of its input, "1,1,64,64,64"; guessed from the network by default.')
    ] = "",
) -> None:
    """List the sites of a network where attention can be inserted: attn3d sites UNet.

    Without --options, the networks of `attn3d train` have its defaults.
    """
    from attn3d.insertion import attention_sites

    with one_line_errors("sites"):
        net = _network(network, options)
        found = attention_sites(net, _shape(shape))
    print(found)


def _network(name: str, options: str) -> Any:
    """Builds a network by name. Without options, the networks of the segmentation application have its defaults."""
    try:
        arguments = json.loads(options)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"`options` must be JSON such as '{{\"spatial_dims\": 3}}', got {options!r}")
    module, _, target = name.rpartition(":")
    if not module:
        from attn3d.segmentation import NETWORKS, create_network

        if target in NETWORKS and not arguments:
            return create_network(target, in_channels=1, out_channels=2)
        module = "monai.networks.nets"
    else:
        sys.path.append(os.getcwd())  # Python does not add it for an installed command
    reason = ""
    try:
        build = getattr(import_module(module), target)
    except (ImportError, AttributeError, TypeError) as error:  # a TypeError for a name that begins with a dot
        build, reason = None, f": {error}"
    if not callable(build):
        raise ValueError(f"`network` must be a name of monai.networks.nets or module:callable, got {name!r}{reason}")
    try:
        return build(**arguments)
    except Exception as error:  # networks raise many kinds
        raise ValueError(f"`network` {name} needs other --options: {type(error).__name__}: {error}") from error


def _shape(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    sizes = text.split(",")
    if len(sizes) < 3 or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f'`shape` must be batch, channels and sizes such as "1,1,64,64,64", got {text!r}')
    return tuple(int(size) for size in sizes)


def plan(
    shape: Annotated[tuple[int, int, int], typer.Option(parser=_size, help="Shape of the volume in voxels.")],
    channels: Annotated[int, typer.Option(help="Channels of the volume.")],
    mechanism: Annotated[str, typer.Option(help="non_local or mhsa.")] = "non_local",
    memory: Annotated[str | None, typer.Option(help='Available memory, such as "8GiB" (default: free memory).')] = None,
) -> None:
    """Estimate the cost of attention over a volume with every pattern and backend, without running it."""
    from attn3d.planning import plan as plans

    title = f"{mechanism}, {channels} channels, {' x '.join(map(str, shape))} voxels, float32"
    table = new_table(title, "Pattern", "Backend", numbers=("Forward", "Training", "Training\nTFLOP", "Fits"))
    with one_line_errors("plan"):
        rows = plans(shape, channels, mechanism=mechanism, memory=memory)
        first = next(rows)  # raises errors in the arguments before the table is drawn
        with Live(table, console=Console()):
            for row in itertools.chain([first], rows):
                table.add_row(
                    row.pattern,
                    row.backend,
                    in_units(row.forward.memory),
                    in_units(row.training.memory),
                    f"{row.training.flops / 1e12:,.2f}",
                    "yes" if row.fits else "no",
                )


def in_units(count: int) -> str:
    """Formats bytes in MiB, GiB or TiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**20:,.1f} MiB"
