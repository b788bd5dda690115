"""The commands ``simulate``, ``train``, ``predict``, ``evaluate``, ``report``, ``compare`` and ``export``.

Each calls the function of the same name in `attn3d.segmentation`, which is imported when the command runs.
"""

import json
import logging
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attn3d.cli.app import one_line_errors
from attn3d.cli.tables import print_by_case, print_comparison, print_scores

Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress bars; training prints a line for each epoch.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that load patches; 0 if shared memory is small (default: 4 on a GPU)."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A folder: image/label pairs, Decathlon, BHSD, nnU-Net v2, INSTANCE 2022, ct-ich, MBH-Seg, Seg-CQ500 "
        "(default: a simulated cohort)."
    ),
]


def simulate(
    out: Out,
    cases: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scans.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write simulated head CT with haemorrhage, to try all commands. It has no clinical meaning."""
    import attn3d.segmentation as segmentation

    with one_line_errors("simulate"):
        print(segmentation.simulate(out, cases, seed, quiet=quiet))


def train(
    data: Data = None,
    out: Out = Path("run"),
    config: Annotated[
        Path | None, typer.Option(help="Settings in YAML or JSON; options of the command override them.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="UNet, ResidualUNet, DynUNet, ResidualDynUNet, SegResNet or BasicUNet (default: depends on the data)."
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="A mechanism of `attn3d list`, its spec as JSON, or none (default: cbam).")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Kinds of site, separated by commas (default: skip).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the cases (default: 30).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time in minutes, instead of --epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and patches (default: 0).")] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            help="Cross-validation: number of folds, or a file such as nnU-Net's splits_final.json. Repeat to resume."
        ),
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Train only this fold of the file.")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="A run or checkpoint; training starts from its weights that fit.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --out.")] = False,
    devices: Annotated[str, typer.Option(help="Number of GPUs, or of processes on the CPU.")] = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train a network with attention. Settings derived from the data are printed and saved; --config overrides them."""
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
            "start_from": start_from,
            "at": None if at is None else _names(at),
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        if folds is not None and fold is None and not resume:
            if devices != "auto":
                raise ValueError(
                    f"`folds` are trained one after the other by one process; omit `devices`, got {devices}"
                )
            count: int | Path = int(folds) if folds.isdecimal() else Path(folds)
            options: dict[str, Any] = {"config": config, "workers": workers, "quiet": quiet}
            found = segmentation.cross_validate(data, out=out, folds=count, **options, **settings)
            print_scores(found.scores, "All cases, each predicted by the fold that held it out")
            folder = shlex.quote(str(out))
            print(f"Results are in {out}/; attn3d predict {folder} averages its {len(found.runs)} runs.")
            return
        if fold is not None and (folds is None or folds.isdecimal()):
            raise ValueError(f"`fold` needs `folds` to be a file with splits, got `fold` {fold} and `folds` {folds}")
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
        if run.finished:  # with several processes, only the first one computes the scores
            print_scores(json.loads(run.scores.read_text(encoding="utf-8")), "Held-out cases")
            print(f"Results are in {run.folder}/; attn3d report {shlex.quote(str(run.folder))} writes a report.")


def predict(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of a cross-validation; several runs are averaged.")
    ],
    scans: Annotated[Path, typer.Option("--in", "-i", help="A scan, a folder of scans, or a DICOM series.")],
    out: Out,
    statistics: Annotated[bool, typer.Option("--statistics", help="Also write volumes in ml as CSV.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also write a picture and an HTML viewer.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write the probabilities.")] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Also write images of entropy and of the runs' spread, and their means as CSV."
        ),
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write DICOM SEG for a DICOM series; needs highdicom.")
    ] = False,
    format: Annotated[
        Literal["nii.gz", "nrrd", "mha"] | None,
        typer.Option(help="File format of the labels (default: that of the scan; nii.gz for DICOM)."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Average over windows mirrored along axes, as 0 or 0,1,2: right, anterior, superior (default: none)."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Use the weights of the best validation, not the last ones.")
    ] = False,
    overlap: Annotated[float, typer.Option(help="Overlap of windows as a fraction of their size.")] = 0.5,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16 if this is faster here and agrees with float32.")
    ] = False,
    keep_largest: Annotated[
        bool, typer.Option("--keep-largest", help="Keep the largest component of all labels together; not for lesions.")
    ] = False,
    remove_small: Annotated[float, typer.Option(min=0, help="Remove components of less than this volume in ml.")] = 0.0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment scans. The labels have exactly the geometry of each scan. torchrun distributes the scans over GPUs."""
    import attn3d.segmentation as segmentation
    from attn3d.plotting.words import in_millilitres
    from attn3d.segmentation.processes import is_first

    _log(quiet or bf16)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's time limit is like Ctrl-C
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
            bf16=bf16,
            keep_largest=keep_largest,
            remove_small=remove_small,
            overwrite=overwrite,
            quiet=quiet,
        )
    if not is_first():
        return
    there = f"; {len(found.skipped)} existed and were skipped" if found.skipped else ""
    scans_of = "scan" if len(found.written) == 1 else "scans"
    print(f"{len(found.written)} {scans_of} segmented, in {out}/{there}")
    if statistics:
        print_by_case(found.volume_ml, "ml", in_millilitres)
    if uncertainty:
        print_by_case(found.uncertainty, "Mean uncertainty of labelled voxels", "{:.3f}".format)
    _end("predict", found.failed)


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="A segmentation, or a folder of segmentations.")],
    label: Annotated[Path, typer.Argument(help="The reference: a file, or a folder of files with the same names.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder for scores.csv and scores.json.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The meaning of the label values, with regions and ignored values: a dataset.json, or the folder of "
            "a run or a data set (default: a label for each value)."
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Tolerance of the surface Dice in mm.")] = 2.0,
    lesions: Annotated[
        bool, typer.Option("--lesions", help="Also compute the panoptic quality of lesions, and write lesions.csv.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also score the calibration, from NAME_probabilities.nii.gz.")
    ] = False,
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
            lesions=lesions,
            probabilities=probabilities,
            overwrite=overwrite,
            quiet=quiet,
        )
    print_scores(scores, "All cases")
    _end("evaluate", scores["failed"])


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished training.")],
    data: Annotated[Path | None, typer.Option(help="The folder of its data set, if it was moved.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the report of a run: curves, tables, overlays and attention maps in one HTML file."""
    import attn3d.segmentation as segmentation

    with one_line_errors("report"):
        print(segmentation.report(run, data, overwrite=overwrite))


def compare(
    mechanisms: Annotated[str, typer.Option(help="Mechanisms, separated by commas; none is always added.")],
    out: Out,
    at: Annotated[
        str | None,
        typer.Option(
            help="Kinds of site, separated by commas: encoder, decoder, bottleneck, skip, .. (default: skip, or those "
            "of --config)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings per mechanism.")] = 5,
    data: Data = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML or JSON, the same for all trainings.")] = None,
    network: Annotated[str | None, typer.Option(help="As for train.")] = None,
    epochs: Annotated[int | None, typer.Option(help="As for train.")] = None,
    minutes: Annotated[float | None, typer.Option(help="As for train.")] = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Compare mechanisms with the plain network: several trainings of each, the same budget. Repeat to resume."""
    import attn3d.segmentation as segmentation

    _log(quiet)
    given = {"at": None if at is None else _names(at), "network": network, "epochs": epochs, "minutes": minutes}
    with one_line_errors("compare"):
        found = segmentation.compare(
            data,
            out=out,
            mechanisms=_names(mechanisms),
            seeds=seeds,
            config=config,
            workers=workers,
            quiet=quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    print_comparison(found)


def _axes(text: str | None) -> list[Any]:
    """Splits axes at commas. Entries that are not numbers stay text, which the check of the setting refuses."""
    return [int(one) if one.isdecimal() else one for one in _names(text)] if text else []


def _names(text: str) -> list[str]:
    """Splits names at commas, after which there may be spaces."""
    return [one.strip() for one in text.split(",")]


def _spec(text: str | None) -> Any:
    """Returns a name unchanged, and a JSON list as a spec."""
    if text is None or not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f'`attention` must be a name or JSON such as ["cbam", {{"reduction": 8}}], got {text!r}'
        ) from error


def _end(command: str, failed: Mapping[str, str]) -> None:
    """Prints the files that could not be used, and exits with code 1 if there are any."""
    for path, problem in failed.items():
        print(f"attn3d {command}: {path}: {problem}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _log(wanted: bool) -> None:
    """Prints the log, such as the line for each epoch that replaces a progress bar."""
    if wanted:
        logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
        logging.getLogger("attn3d").setLevel(logging.INFO)
