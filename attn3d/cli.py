"""The command ``attn3d``, also ``python -m attn3d``."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from attn3d import planning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Attention for 3-D medical-image networks.",
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """So that a single command keeps its name."""


@app.command()
def plan(
    shape: Annotated[tuple[int, int, int], typer.Option(help="The volume that attention is over, in voxels.")],
    channels: Annotated[int, typer.Option(help="Its channels.")],
    mechanism: Annotated[str, typer.Option(help="non_local or mhsa.")] = "non_local",
    memory: Annotated[str | None, typer.Option(help='Bytes there are, such as "8GiB" [what is free].')] = None,
) -> None:
    """What attention over a volume costs in every scope and method: the volume need not fit this machine."""
    table = Table(title=f"{mechanism}, {channels} channels, {' x '.join(map(str, shape))} voxels, float32")
    table.add_column("Scope", no_wrap=True)
    table.add_column("Method", no_wrap=True)
    for heading in ("Forward", "Training", "Training\nTFLOP", "Fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    try:
        with Live(table, console=Console()):
            for row in planning.plan(shape, channels, mechanism=mechanism, memory=memory):
                table.add_row(
                    row.scope,
                    row.method,
                    in_units(row.forward.memory),
                    in_units(row.training.memory),
                    f"{row.training.flops / 1e12:,.2f}",
                    "yes" if row.fits else "no",
                )
    except (ValueError, TypeError) as error:
        print(f"attn3d plan: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def in_units(count: int) -> str:
    """Bytes in MiB, GiB or TiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**20:,.1f} MiB"
