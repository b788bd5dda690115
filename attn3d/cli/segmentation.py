"""From scans to segmentations: ``simulate``, ``train``, ``predict``, ``evaluate``, ``report`` and ``compare``.

Each is the function of the same name in `attn3d.segmentation`, which is imported when a command runs.
"""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from attn3d.cli.app import one_line_errors

Out = Annotated[Path, typer.Option("--out", "-o", help="Where to.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars; a line for each epoch instead.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
At = Annotated[str, typer.Option(help="Kinds of site, separated by commas: encoder, decoder, bottleneck, skip, ..")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that load patches; 0 where shared memory is small [4 on a GPU].")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A folder: image/label pairs, Decathlon, BHSD, nnU-Net v2, INSTANCE 2022, ct-ich, MBH-Seg, Seg-CQ500 "
        "[a simulated cohort]."
    ),
]


def simulate(
    out: Out,
    cases: Annotated[int, typer.Option(min=1, help="How many.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scans.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write simulated head CT with haemorrhage, to try everything on. It proves nothing clinical."""
    import attn3d.segmentation as segmentation

    with one_line_errors("simulate"):
        print(segmentation.simulate(out, cases, seed, overwrite=overwrite, quiet=quiet))


def train(
    data: Data = None,
    out: Out = Path("run"),
    config: Annotated[Path | None, typer.Option(help="Settings in YAML or JSON; options here override it.")] = None,
    network: Annotated[
        str | None,
        typer.Option(help="UNet, ResidualUNet, DynUNet, ResidualDynUNet, SegResNet, BasicUNet [by the data]."),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="A mechanism, its spec as JSON, or none: `attn3d list` [cbam].")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Kinds of site, separated by commas [skip].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the cases [30].")] = None,
    minutes: Annotated[float | None, typer.Option(help="Of training, instead of --epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and patches [0].")] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="A run for each fold: how many, or given splits as nnU-Net's splits_final.json. It resumes."),
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Only this one of the given splits.")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="A run, or a checkpoint, whose weights that fit it starts with.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    devices: Annotated[str, typer.Option(help="How many GPUs, or processes on the CPU.")] = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train a network with attention. All that follows from the data is printed, saved, and can be set in --config."""
    import attn3d.segmentation as segmentation

    _log(quiet)
    with one_line_errors("train"):
        if devices != "auto" and not (devices.isdecimal() and int(devices)):
            raise ValueError(f"`devices` must be auto or a positive number, got {devices!r}")
        settings = {
            "network": network,
            "attention": _spec(attention),
            "epochs": epochs,
            "minutes": minutes,
            "seed": seed,
            "start_from": None if start_from is None else str(start_from),
        }
        settings |= {"at": None if at is None else at.split(",")}
        settings = {name: value for name, value in settings.items() if value is not None}
        if resume and (settings or config is not None or folds is not None):
            raise ValueError("`resume` goes on with the settings in --out; give no others (but --data, if moved)")
        if folds is not None and fold is None:
            if devices != "auto":
                raise ValueError(f"`folds` are trained one after the other by one process, got `devices` {devices}")
            count: int | Path = int(folds) if folds.isdecimal() else Path(folds)
            options: dict[str, Any] = {"config": config, "workers": workers, "quiet": quiet}
            found = segmentation.cross_validate(data, out=out, folds=count, **options, **settings)
            simulated = " (simulated)" if found.runs[0].config.simulated else ""
            _print_scores(found.scores, f"All cases, each by the fold that held it out{simulated}")
            print(f"Everything is in {out}/; attn3d predict {out} takes the {len(found.runs)} runs as one.")
            return
        if fold is not None and (folds is None or folds.isdecimal()):
            raise ValueError(f"`fold` chooses one of given splits, got {fold} and `folds` {folds}; give their file")
        run = segmentation.train(
            data,
            out=out,
            config=config,
            folds=folds,
            fold=fold or 0,
            resume=resume,
            devices=devices if devices == "auto" else int(devices),
            workers=workers,
            quiet=quiet,
            **settings,
        )
        if run.finished:  # with several processes, the first one scores
            scores = json.loads(run.scores.read_text(encoding="utf-8"))
            _print_scores(scores, f"Held-out cases{' (simulated)' if run.config.simulated else ''}")
            print(f"Everything is in {run.folder}/; attn3d report {run.folder} makes a page of it.")


def predict(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders with one for each fold; several are averaged.")],
    scans: Annotated[Path, typer.Option("--in", "-i", help="A scan, a folder of them, or a DICOM series.")],
    out: Out,
    statistics: Annotated[bool, typer.Option("--statistics", help="Volumes in ml, as a CSV table.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="A picture of each, and a page to look through.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also what the labels come from.")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Images of entropy, of runs' spread, and a CSV table of their means.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also a DICOM SEG, of a DICOM series; needs highdicom.")
    ] = False,
    format: Annotated[
        Literal["nii.gz", "nrrd", "mha"] | None,
        typer.Option(help="Of the labels [that of the scan; nii.gz for DICOM]."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="Average over windows mirrored along axes, as 0 or 0,1,2: right, anterior, superior [none]."),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The weights of the best validation, not the last.")] = False,
    overlap: Annotated[float, typer.Option(help="Of neighbouring windows.")] = 0.5,
    remove_small: Annotated[float, typer.Option(min=0, help="Drop pieces of less than so many ml.")] = 0.0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment scans; labels come in exactly the geometry of each scan."""
    import attn3d.segmentation as segmentation

    with one_line_errors("predict"):
        found = segmentation.predict(
            runs,
            scans,
            out,
            statistics=statistics,
            preview=preview,
            probabilities=probabilities,
            uncertainty=uncertainty,
            dicom_seg=dicom_seg,
            format=format,
            mirror=_axes(mirror),
            best=best,
            overlap=overlap,
            remove_small=remove_small,
            overwrite=overwrite,
            quiet=quiet,
        )
    there = f", {len(found.skipped)} were there already" if found.skipped else ""
    print(f"{len(found.written)} segmented, in {out}/{there}")
    if statistics:
        _print_by_case(found.volume_ml, "ml", 1)
    if uncertainty:
        _print_by_case(found.uncertainty, "Mean uncertainty of what is labelled", 3)
    _end("predict", found.failed)


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="A file or a folder of them.")],
    label: Annotated[Path, typer.Argument(help="The reference: a file, or a folder of files of the same names.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where scores.csv and scores.json go.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="What values mean, regions and values to ignore too: nnU-Net's dataset.json, or the folder of a run "
            "or a data set [a label for each value]."
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="mm that a surface may be off.")] = 2.0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score segmentations against references: Dice, distances in mm, volumes in ml, lesions."""
    import attn3d.segmentation as segmentation

    with one_line_errors("evaluate"):
        scores = segmentation.evaluate(
            prediction,
            label,
            out,
            labels=None if labels is None else segmentation.read_labels(labels),
            tolerance=tolerance,
            overwrite=overwrite,
            quiet=quiet,
        )
    _print_scores(scores, "All cases")
    _end("evaluate", scores["failed"])


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished training.")],
    data: Annotated[Path | None, typer.Option(help="Where its scans are now, if they were moved.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """One page of a run: curves, tables, overlays and attention maps, in a file that needs no other."""
    import attn3d.segmentation as segmentation

    with one_line_errors("report"):
        print(segmentation.report(run, data, overwrite=overwrite))


def compare(
    mechanisms: Annotated[str, typer.Option(help="Separated by commas; none is always among them.")],
    out: Out,
    at: At = "skip",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 5,
    data: Data = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML or JSON, the same for all.")] = None,
    network: Annotated[str | None, typer.Option(help="As for train.")] = None,
    epochs: Annotated[int | None, typer.Option(help="As for train.")] = None,
    minutes: Annotated[float | None, typer.Option(help="As for train.")] = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """The same budget for each mechanism and for none, several times: does it help, or is it noise? It resumes."""
    import attn3d.segmentation as segmentation

    _log(quiet)
    given: dict[str, Any] = {"config": None if config is None else str(config), "network": network}
    given |= {"epochs": epochs, "minutes": minutes}
    with one_line_errors("compare"):
        found = segmentation.compare(
            data,
            out=out,
            mechanisms=mechanisms.split(","),
            at=at.split(","),
            seeds=seeds,
            workers=workers,
            quiet=quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    table = Table(title=f"Mean Dice{' (simulated scans)' if found['simulated'] else ''}", box=box.SIMPLE_HEAD)
    table.add_column("Mechanism", no_wrap=True)
    for heading in ("Dice", "95 % interval", "Difference\nto none", "95 % interval", "Parameters", "Seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in found["mechanisms"].items():
        difference = f"{one['difference']:+.3f}" if "difference" in one else ""
        table.add_row(
            name,
            f"{one['mean']:.3f}",
            _interval(one["interval"]),
            difference,
            _interval(one.get("difference_interval")),
            f"{one['parameters']:,}",
            f"{one['seconds']:.0f}",
        )
    _show(table)
    for name, one in found["mechanisms"].items():
        if name != "none" and one["difference_interval"] is None:
            print(f"{name}: one seed says nothing about noise")
        elif name != "none":
            print(f"{name}: the difference is {'inside' if one['inside_noise'] else 'beyond'} the noise")


def _axes(text: str | None) -> list[Any]:
    """Axes separated by commas; what is no number is left to the check of the setting."""
    return [int(one) if one.isdecimal() else one for one in text.split(",")] if text else []


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _spec(text: str | None) -> Any:
    """A name as it is, a list in JSON as a spec."""
    if text is None or not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f'`attention` must be a name or JSON such as ["cbam", {{"reduction": 8}}], got {text!r}'
        ) from (error)


def _print_by_case(found: Mapping[str, Mapping[str, float]], title: str, digits: int) -> None:
    """A row of numbers for each case, NaN as a dash."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("Case", no_wrap=True)
    for heading in next(iter(found.values()), ()):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, numbers in found.items():
        table.add_row(case, *("–" if math.isnan(one) else f"{one:.{digits}f}" for one in numbers.values()))
    if found:
        _show(table)


def _print_scores(scores: Mapping[str, Any], title: str) -> None:
    """The scores over the cohort, a row for each label."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("Label", no_wrap=True)
    surface = f"Surface\nDice {scores['tolerance_mm']:g} mm"
    for heading in ("Cases", "Dice", "HD95\nmm", surface, "Lesions\nfound", "False\nlesions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, one in scores["overall"].items():
        numbers = [(one["dice_with"], 3), (one["hd95_mm_with"], 1), (one["surface_dice_with"], 3)]
        table.add_row(
            label,
            f"{one['cases_with']} of {one['cases']}",
            *("–" if value is None else f"{value:.{digits}f}" for value, digits in numbers),
            f"{one['lesions_found']} of {one['lesions']}",
            str(one["false_lesions"]),
        )
    table.caption = "Dice, HD95 and surface Dice: means over the cases with the label"
    _show(table)


def _show(table: Table) -> None:
    """Prints a table; names of cases and labels are taken as they are, not as markup."""
    Console(markup=False, emoji=False).print(table)


def _end(command: str, failed: Mapping[str, str]) -> None:
    """Lists what could not be used, and ends with exit code 1 where there is any."""
    for path, problem in failed.items():
        print(f"attn3d {command}: {path}: {problem}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _log(quiet: bool) -> None:
    """A line for each epoch where there is no bar."""
    if quiet:
        logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
        logging.getLogger("attn3d").setLevel(logging.INFO)
