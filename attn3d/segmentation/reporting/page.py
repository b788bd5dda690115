"""The command ``report``: writes one self-contained HTML file for a run."""

from datetime import date
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from attn3d.arguments import spec_words
from attn3d.gates import constant_gates
from attn3d.plotting import plot_training
from attn3d.segmentation.datasets import Case, Dataset, read_case_image, read_case_label
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import read_json, read_table, sweep, write_text
from attn3d.segmentation.labels import ANY
from attn3d.segmentation.reporting.pictures import attention_figures, lesion_figures, lesion_patch, svg
from attn3d.segmentation.reporting.templates import render
from attn3d.segmentation.reporting.viewer import heat_shades, niivue
from attn3d.segmentation.runs import Run, how_to_finish
from attn3d.segmentation.summaries import mean_dice

_COMPARED = 8  # number of held-out cases whose gates are compared


def report(run: Run | Path | str, data: Path | str | None = None, *, overwrite: bool = False) -> Path:
    """Writes the report of a finished run to ``report.html`` in its folder, for any browser.

    The report has the scores of the held-out cases, the training curves, overlays centred on the lesions of the best,
    the median and the worst case, attention maps over the anatomy, and the configuration with the fingerprint of the
    data and the versions. A viewer shows the three cases with their attention maps. The file needs no other file. It
    says if the scans are simulated.

    Args:
        run: a run or its folder.
        data: the folder of its data set, if it was moved since the training.
        overwrite: whether to replace an existing report.

    Returns:
        The path of the report.

    Raises:
        FileError: when the run is not finished, one of its files cannot be used, or a report exists.
    """
    if data is not None or not isinstance(run, Run):
        run = Run.open(run.folder if isinstance(run, Run) else run, data)
    path = run.folder / "report.html"
    if path.exists() and not overwrite:
        raise FileError(path, "already exists; overwrite it with --overwrite")
    missing = f"does not exist; {how_to_finish(run.folder)}"
    scores = read_json(run.scores, "overall", "cases", "tolerance_mm", "failed", missing=missing)
    if not scores["overall"] or not scores["cases"]:
        raise FileError(run.scores, f"has no scores of any case; {how_to_finish(run.folder)}")
    metrics = read_table(run.folder / "metrics.csv", missing)
    dataset = run.dataset()
    mechanism = None if run.config.attention is None else spec_words(run.config.attention)
    page = render(
        "report.html",
        name=run.folder.resolve().name,
        date=date.today().isoformat(),
        attn3d=version("attn3d"),
        simulated=run.config.simulated,
        config=run.config,
        mechanism=mechanism,
        settings=run.config.as_dict() | {"attention": mechanism},
        fingerprint=read_json(run.folder / "fingerprint.json", missing=missing),
        split=read_json(run.folder / "split.json", "training", "validation", missing=missing),
        scores=scores,
        main=ANY if ANY in scores["overall"] else next(iter(scores["overall"])),
        any=ANY,
        macro=mean_dice(scores),
        curves=svg(plot_training([row.dropna().to_dict() for _, row in metrics.iterrows()])),
        lesions=lesion_figures(run, dataset, scores),
        attention=attention_figures(run, dataset, scores),
        constant=None if run.config.attention is None else same_gates(run, dataset),
        niivue=niivue(),
        heat=heat_shades(),
    )
    sweep(run.folder)
    write_text(path, page)
    return path


def same_gates(run: Run, dataset: Dataset) -> list[str] | None:
    """The gates that are equal for the lesions of all held-out cases; None if there is only one case."""
    cases = run.cases("validation", dataset)[:_COMPARED]
    if len(cases) < 2:
        return None

    def patch(case: Case) -> Tensor:
        images = read_case_image(case)
        return lesion_patch(images, read_case_label(case, dataset, images[0]), run.config)[0][None]

    return list(constant_gates(run.network(), map(patch, cases)))
