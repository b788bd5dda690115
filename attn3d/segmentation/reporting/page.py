"""The command ``report``: from a run folder to one HTML file that holds all it shows."""

from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attn3d.plotting import plot_training
from attn3d.segmentation.datasets import ANY
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.evaluation import mean_dice
from attn3d.segmentation.reporting.pictures import attention_figures, lesion_figures, spec_words, svg
from attn3d.segmentation.runs import Run
from attn3d.segmentation.writing import read_json, read_table, sweep, write_text

_UNFINISHED = "is not there; finish the training with `attn3d train --resume`"


def report(run: Run | Path | str, data: Path | str | None = None, *, overwrite: bool = False) -> Path:
    """Writes the report of a finished run: ``report.html`` in its folder, to open in any browser.

    It holds the scores on the held-out cases, the curves of the training, overlays centred on the lesions of the
    best, the median and the worst case, attention maps over the anatomy, and the configuration with the data's
    fingerprint and the versions. It refers to no other file, and says when the scans are simulated.

    Args:
        run: a run or its folder.
        data: where its data set is now, if it was moved since the training.
        overwrite: whether a report that is there may be replaced.

    Returns:
        The path of the report.

    Raises:
        FileError: when the run is not finished, a file of it cannot be used, or a report is there already.
    """
    if data is not None or not isinstance(run, Run):
        run = Run.open(run.folder if isinstance(run, Run) else run, data)
    path = run.folder / "report.html"
    if path.exists() and not overwrite:
        raise FileError(path, "is there already; allow to overwrite it")
    scores = read_json(run.scores, "overall", "cases", "tolerance_mm", "failed", missing=_UNFINISHED)
    if not scores["overall"] or not scores["cases"]:
        raise FileError(run.scores, "has no scores of any case; finish the training with `attn3d train --resume`")
    metrics = read_table(run.folder / "metrics.csv", _UNFINISHED)
    settings = run.config.as_dict()
    page = (
        _environment()
        .get_template("report.html")
        .render(
            name=run.folder.resolve().name,
            date=date.today().isoformat(),
            attn3d=version("attn3d"),
            simulated=run.config.simulated,
            config=run.config,
            mechanism=None if run.config.attention is None else spec_words(run.config.attention),
            settings={name: value for name, value in settings.items() if name not in ("versions", "format")},
            versions=run.config.versions,
            fingerprint=read_json(run.folder / "fingerprint.json", missing=_UNFINISHED),
            split=read_json(run.folder / "split.json", "training", "validation", missing=_UNFINISHED),
            scores=scores,
            main=ANY if ANY in scores["overall"] else next(iter(scores["overall"])),
            any=ANY,
            macro=mean_dice(scores),
            curves=svg(plot_training([row.dropna().to_dict() for _, row in metrics.iterrows()])),
            lesions=lesion_figures(run, scores),
            attention=attention_figures(run, scores),
        )
    )
    sweep(run.folder)
    write_text(path, page)
    return path


def _environment() -> Environment:
    """Templates that escape everything and refuse what they are not given."""
    environment = Environment(
        loader=PackageLoader("attn3d.segmentation.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "plain": _plain}
    return environment


def _number(value: float | None, digits: int = 2) -> str:
    """A number as a table has it; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        nested = any(isinstance(one, list | tuple | Mapping) for one in value)
        return "; ".join(f"({_plain(one)})" for one in value) if nested else ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
