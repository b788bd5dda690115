"""Benchmarks of time and memory of attn3d against plain forms, measured in the same run.

    python examples/benchmark.py --what attention
    python examples/benchmark.py --what mechanisms --shape 32 32 32 --channels 64 --dtype bfloat16
    python examples/benchmark.py --what insertion --what scaling --json figures.json
    python examples/benchmark.py --what groups --threads 1 --threads 2 --beside ../v01
    python examples/benchmark.py --what mechanisms --small

Every figure is compared with another figure of the same run, because times differ between machines. After a warm-up
run, the two functions take turns. The ratio is that of the medians, and its spread is given by the quartiles of the
ratios of single turns. Memory is the peak in addition to the inputs, as the allocator reports it. It does not depend on
the load of the machine, but times do. Therefore a fixed piece of work is timed before, between and after the turns. If
a quarter of its times exceed the best of the run by more than a quarter, the ratio is marked "loaded" and not checked
against its limit. A ratio above its limit is marked by asterisks. ``--small`` uses tiny sizes, to check that everything
runs; its ratios have no meaning.

``--beside`` is an older checkout of the library, for example from ``git worktree add ../v01 041d8b1``.
"""

import json
import os
import platform
import shlex
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

import attn3d

# To import `examples.benchmarks`, and the plain forms in `tests`, from the root of the repository.
sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.benchmarks.attention import attention
from examples.benchmarks.groups import groups
from examples.benchmarks.insertion import insertion
from examples.benchmarks.measuring import Bench, Row
from examples.benchmarks.mechanisms import mechanisms
from examples.benchmarks.scaling import scaling
from examples.benchmarks.tables import measured_on, of_curves, of_rows

SUBJECTS = {
    "mechanisms": mechanisms,
    "attention": attention,
    "groups": groups,
    "insertion": insertion,
    "scaling": scaling,
}
Subject = StrEnum("Subject", list(SUBJECTS))
Mechanism = StrEnum("Mechanism", attn3d.list_attention())
Device = StrEnum("Device", ["cpu", "cuda"])
Dtype = StrEnum("Dtype", ["float32", "bfloat16", "float16"])


def main(
    what: Annotated[list[Subject], typer.Option(help="What to measure; may be repeated.")],
    threads: Annotated[list[int], typer.Option(min=1, help="CPU threads; may be repeated for groups.")] = (2,),
    runs: Annotated[int, typer.Option(min=1, help="Number of runs for the median.")] = 9,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(min=1, help="Shape of the volume of mechanisms, insertion and scaling (default: by subject)."),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of volume or network (default: by subject).")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of volumes and parameters.")] = Dtype.float32,
    mechanism: Annotated[list[Mechanism], typer.Option(help="Only this mechanism; may be repeated.")] = (),
    beside: Annotated[Path | None, typer.Option(help="An older checkout of the library, for groups.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Use tiny sizes; the ratios have no meaning.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="A new file for the figures.")] = None,
) -> None:
    """Measure attn3d against plain forms and print the ratios."""
    if len(threads) > 1 and what != ["groups"]:
        raise typer.BadParameter("only groups has several numbers of threads", param_hint="--threads")
    if beside is not None and not (beside / "attn3d" / "__init__.py").is_file():
        message = f"{beside} is not a checkout of the library: it has no attn3d/__init__.py"
        raise typer.BadParameter(message, param_hint="--beside")
    if file is not None and file.exists():
        raise typer.BadParameter(f"{file} exists; give a new file", param_hint="--json")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device is available", param_hint="--device")

    torch.set_num_threads(threads[0])
    torch.manual_seed(0)
    versions = {package: version(package).partition("+")[0] for package in ("torch", "monai", "attn3d")}
    versions |= {"CUDA": torch.version.cuda} if device == "cuda" else {}
    bench = Bench(device, runs, small, shape, channels, getattr(torch, dtype), mechanism, threads, beside)
    console = Console(width=None if sys.stdout.isatty() else 132)
    found: dict[str, Any] = {
        "command": shlex.join(["python", "examples/benchmark.py", *sys.argv[1:]]),
        "machine": machine(device),
        "versions": versions,
        "threads": threads[0] if len(threads) == 1 else " and ".join(map(str, threads)),
        "runs": runs,
        "dtype": dtype,
        "small": small,
    }
    for name in dict.fromkeys(what):
        with console.status(f"measuring {name}"):
            rows = list(SUBJECTS[name](bench))
        if not bench.standard:  # the limits are for the standard sizes
            rows = [row._replace(limit=None) if isinstance(row, Row) else row for row in rows]
        found[name] = [row.saved() for row in rows]
        lines = of_curves(found[name]) if name == "scaling" else of_rows(found[name])
        console.print(table(f"{name}: {measured_on(found)}", lines))
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


def machine(device: str) -> str:
    """The machine of the measurements."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def table(title: str, lines: list[list[str]]) -> Table:
    """A table for the terminal. All columns but the first two have numbers."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, heading in enumerate(lines[0]):
        shown.add_column(heading, justify="left" if place < 2 else "right", no_wrap=place >= 2)
    for line in lines[1:]:
        shown.add_row(*line)
    return shown


if __name__ == "__main__":
    typer.run(main)
