"""Benchmarks of time and memory of attn3d against plain forms, measured in the same run.

    python examples/benchmark.py --what attention
    python examples/benchmark.py --what mechanisms --shape 32 32 32 --channels 64 --dtype bfloat16
    python examples/benchmark.py --what insertion --what scaling --json figures.json --charts charts
    python examples/benchmark.py --what groups --threads 1 --threads 2 --beside ../v01
    python examples/benchmark.py --what mechanisms --small

Every figure is compared with another figure of the same run, because times differ between machines. After a warm-up
run, the two functions take turns. The ratio is that of the medians, and its spread is given by the quartiles of the
ratios of single turns. Memory is the peak in addition to the inputs, as the allocator reports it. It does not depend on
the load of the machine, but times do. Therefore a fixed piece of work is timed before, between and after the turns. If
a quarter of its times exceed the best of the run by more than a quarter, the ratio is marked "loaded" and not checked
against its limit. ``--small`` uses tiny sizes, to check that everything runs; its ratios have no meaning.

``--beside`` is an older checkout of the library, for example from ``git worktree add ../v01 041d8b1``.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

import attn3d

# To import `examples.benchmarks`, and the plain forms in `tests`, from the root of the repository.
sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.benchmarks.attention import attention
from examples.benchmarks.charts import CHARTS, measured_on
from examples.benchmarks.groups import groups
from examples.benchmarks.insertion import insertion
from examples.benchmarks.measuring import Bench, Row
from examples.benchmarks.mechanisms import mechanisms
from examples.benchmarks.scaling import Curve, scaling


class Subject(NamedTuple):
    """A subject of measurement.

    Attributes:
        measure: the function that measures it.
        of_a_volume: whether the volume can be chosen.
        multiples: the number that must divide the extents and channels.
        comparing: whether it supports several numbers of threads and an older checkout.
    """

    measure: Callable[[Bench], Iterator[Row | Curve]]
    of_a_volume: bool = True
    multiples: int = 1
    comparing: bool = False


SUBJECTS = {
    "mechanisms": Subject(mechanisms),
    "attention": Subject(attention, of_a_volume=False),
    "groups": Subject(groups, of_a_volume=False, comparing=True),
    "insertion": Subject(insertion, multiples=8),
    "scaling": Subject(scaling),
}


class Dtype(StrEnum):
    """The dtype of volumes and parameters."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def main(
    context: typer.Context,
    what: Annotated[list[str], typer.Option(help=f"One of {', '.join(SUBJECTS)}; may be repeated.")],
    threads: Annotated[list[int], typer.Option(min=1, help="CPU threads; may be repeated for groups.")] = (2,),
    runs: Annotated[int, typer.Option(min=1, help="Number of runs for the median.")] = 9,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Shape of the volume (default: by subject).")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of volume or network (default: by subject).")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of volumes and parameters.")] = Dtype.float32,
    mechanism: Annotated[list[str] | None, typer.Option(help="Only this mechanism; may be repeated.")] = None,
    beside: Annotated[Path | None, typer.Option(help="An older checkout of the library, for groups.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Use tiny sizes; the ratios have no meaning.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="A new file for the figures.")] = None,
    charts: Annotated[Path | None, typer.Option(help="A folder for charts of the figures.")] = None,
) -> None:
    """Measure attn3d against plain forms and print the ratios."""
    given = commanded(context)
    check_subjects(what, given, shape, channels, mechanism or [], small)
    check_comparison(what, threads, beside)
    check_surroundings(what, device, file, charts)

    torch.set_num_threads(threads[0])
    torch.manual_seed(0)
    versions = {package: version(package).partition("+")[0] for package in ("torch", "monai", "attn3d")}
    versions |= {"CUDA": torch.version.cuda} if device == "cuda" else {}
    chosen = shape, channels, getattr(torch, dtype), mechanism or ()
    bench = Bench(device, runs, small, *chosen, threads, beside)
    console = Console(width=None if sys.stdout.isatty() else 132)
    found: dict[str, Any] = {
        "command": " ".join(["python examples/benchmark.py", *given.values()]),
        "machine": machine(device),
        "versions": versions,
        "threads": threads[0] if len(threads) == 1 else " and ".join(map(str, threads)),
        "runs": runs,
        "dtype": str(dtype),
        "small": small,
    }
    for name in dict.fromkeys(what):
        with console.status(f"measuring {name}"):
            rows = [without_limit(row) if small else row for row in SUBJECTS[name].measure(bench)]
        show = table_of_curves if isinstance(rows[0], Curve) else table
        console.print(show(f"{name}: {measured_on(found)}", rows))
        found[name] = [row.saved() for row in rows]
        if charts is not None and name in CHARTS:
            charts.mkdir(parents=True, exist_ok=True)
            for chart, draw in CHARTS[name].items():
                draw(found).save(charts / f"{chart}.svg")
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


def check_subjects(
    what: list[str],
    given: dict[str, str],
    shape: tuple[int, ...] | None,
    channels: int | None,
    mechanism: list[str],
    small: bool,
) -> None:
    """Raises an error for unknown subjects, and for options that a subject does not use."""
    for option, names, known in (("what", what, SUBJECTS), ("mechanism", mechanism, attn3d.list_attention())):
        for name in names:
            if name not in known:
                raise typer.BadParameter(f"must be one of {', '.join(known)}, got {name!r}", param_hint=f"--{option}")
    for name in what:
        for option in ("shape", "channels", "dtype", "mechanism"):
            if option in given and not SUBJECTS[name].of_a_volume:
                raise typer.BadParameter(f"{name} does not use this option", param_hint=f"--{option}")
        for option, sizes in (("shape", shape or ()), ("channels", () if channels is None else (channels,))):
            if any(size % SUBJECTS[name].multiples for size in sizes):
                message = f"{name} needs multiples of {SUBJECTS[name].multiples}, got {sizes}"
                raise typer.BadParameter(message, param_hint=f"--{option}")
    if shape is not None and min(shape) < 1:
        raise typer.BadParameter(f"must be positive, got {shape}", param_hint="--shape")
    if small and shape is not None:
        raise typer.BadParameter("cannot be used with --shape; omit one of them", param_hint="--small")


def check_comparison(what: list[str], threads: list[int], beside: Path | None) -> None:
    """Raises an error for several numbers of threads or a checkout if a subject does not support them."""
    for name in what:
        if not SUBJECTS[name].comparing:
            if len(threads) > 1:
                raise typer.BadParameter(f"{name} needs a single number of threads", param_hint="--threads")
            if beside is not None:
                raise typer.BadParameter(f"{name} is not compared with an older checkout", param_hint="--beside")
    if beside is not None and not (beside / "attn3d" / "__init__.py").is_file():
        message = f"{beside} is not a checkout of the library: it has no attn3d/__init__.py"
        raise typer.BadParameter(message, param_hint="--beside")


def check_surroundings(what: list[str], device: str, file: Path | None, charts: Path | None) -> None:
    """Raises an error if the device is not available, the file exists, or no subject has a chart."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"{device!r} is not available", param_hint="--device")
    if file is not None and file.exists():
        raise typer.BadParameter(f"{file} exists; give a new file", param_hint="--json")
    if charts is not None and not CHARTS.keys() & set(what):
        raise typer.BadParameter(f"{what[0]} has no chart; these have: {', '.join(CHARTS)}", param_hint="--charts")


def commanded(context: typer.Context) -> dict[str, str]:
    """The options on the command line by name, as text. Absolute paths are shortened to the name of the file."""
    words = {}
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name).name == "COMMANDLINE":
            values = context.params[parameter.name]
            option = parameter.opts[0]
            if isinstance(values, list):  # given more than once
                words[parameter.name] = " ".join(f"{option} {value}" for value in values)
            elif values is True:
                words[parameter.name] = option
            else:
                values = values if isinstance(values, tuple) else (values,)
                shown = [v.name if isinstance(v, Path) and v.is_absolute() else str(v) for v in values]
                words[parameter.name] = " ".join([option, *shown])
    return words


def without_limit(row: Row | Curve) -> Row | Curve:
    """A row without its limit, since the ratios of small sizes have no meaning."""
    return row._replace(limit=None) if isinstance(row, Row) else row


def machine(device: str) -> str:
    """The machine of the measurements."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def table(title: str, rows: list[Row]) -> Table:
    """A table of the figures, their ratios and the limits of the ratios."""
    shown = columns(title, ("what", "beside"), ("ours", "other", "ratio", "quartiles", "limit"))
    for row in rows:
        if row.ours is None:
            shown.add_row(row.what, row.beside, row.note, "", "", "", "")
            continue
        figures = [f"{figure:.3g} {row.unit}" for figure in (row.ours, row.other)]
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}{', loaded' if row.loaded else ''}"
        spread = "" if row.spread is None else "{:.3g} - {:.3g}".format(*row.spread)
        limit = "" if row.limit is None else f"{judged(row)} {row.limit:.2g}"
        shown.add_row(row.what, row.beside, *figures, ratio, spread, limit)
    return shown


def judged(row: Row) -> str:
    """Whether a ratio is within its limit; not judged on a loaded machine."""
    if row.loaded:
        return "limit:"
    return "within" if row.ratio <= row.limit else "beyond"


def table_of_curves(title: str, curves: list[Curve]) -> Table:
    """A table of time and memory of each curve at its largest volume, and of their slopes."""
    shown = columns(title, ("of", "name"), ("N", "time", "its slope", "memory", "its slope"))
    for curve in curves:
        count, seconds, memory, *_ = curve.points[-1]
        slopes = [f"{curve.slope(1):.2f}{', loaded' if curve.loaded else ''}", f"{curve.slope(2):.2f}"]
        shown.add_row(
            curve.kind, curve.name, str(count), f"{seconds:.3g} s", slopes[0], f"{memory / 2**20:.3g} MiB", slopes[1]
        )
    return shown


def columns(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """A table without rows."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in words:
        shown.add_column(heading)
    for heading in numbers:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


if __name__ == "__main__":
    typer.run(main)
