"""The command ``predict``: from scans to labels in the geometry that they came in."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from rich.progress import track
from torch import nn

from attn3d.plotting import plot_segmentation
from attn3d.segmentation.components import middle_of_largest, without_small
from attn3d.segmentation.datasets import Case, Dataset, find_scans, read_case_image, read_case_label
from attn3d.segmentation.dicom_seg import highdicom, write_dicom_seg
from attn3d.segmentation.errors import FileError, failing_as, failure_noted
from attn3d.segmentation.files import check_same_grid, read_segmentation, read_volume, write_image, write_label
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.inference import Segmentation, View, highest_entropy, measures_of, segment
from attn3d.segmentation.itk import ENDINGS
from attn3d.segmentation.networks import shape_multiple
from attn3d.segmentation.portable import window_size
from attn3d.segmentation.preprocessing import intensities_of
from attn3d.segmentation.runs import Run, open_runs
from attn3d.segmentation.settings import Configuration, Settings, checked
from attn3d.segmentation.tables import add_row, rows_in
from attn3d.segmentation.writing import finished_file, sweep, write_text

_FORMATS = ("nii.gz", *(ending[1:] for ending in ENDINGS))


class Prediction(NamedTuple):
    """What came of a batch of scans.

    Attributes:
        written: the labels' file by the name of the case.
        skipped: the same of the cases that were there already.
        failed: why there is none, by the name of the file.
        volume_ml: by case and label, of both.
        uncertainty: by case and measure, of both: the mean over what is labelled, NaN where nothing is; only where it
            was asked for.
    """

    written: dict[str, Path]
    skipped: dict[str, Path]
    failed: dict[str, str]
    volume_ml: dict[str, dict[str, float]]
    uncertainty: dict[str, dict[str, float]]


def predict(
    runs: Path | str | Sequence[Path | str],
    scans: Path | str,
    out: Path | str,
    *,
    statistics: bool = False,
    preview: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    dicom_seg: bool = False,
    format: Literal["nii.gz", "nrrd", "mha"] | None = None,
    mirror: Sequence[int] = (),
    best: bool = False,
    overlap: float = 0.5,
    remove_small: float = 0.0,
    overwrite: bool = False,
    quiet: bool = False,
) -> Prediction:
    """Segments scans with one or several trained networks.

    A scan may have any orientation, spacing or oblique affine; its labels are uint8 in exactly its geometry. A scan
    that cannot be used does not stop the others, whatever is wrong with it. What is there already is skipped, so that
    a batch that was stopped goes on where it was.

    Args:
        runs: folders of finished trainings, or of cross-validations, which stand for those of all their folds; the
            probabilities of several are averaged.
        scans: a NIfTI, NRRD or MHA file, a folder of them (``case_0000.nii.gz``, ``case_0001.nii.gz``, .. where a case
            has several images), a DICOM series or the folder of a data set.
        out: folder for ``case.nii.gz``, or as ``format`` says, another than that of the scans. Several processes may
            write into it.
        statistics: also ``statistics.csv``, the volumes in ml, added to those that are there.
        preview: also ``case.png``, three planes, and ``case.html``, a page to look through the scan.
        probabilities: also ``case_probabilities.nii.gz``, float32: in each last index the background or a label, or
            where labels are regions a region.
        uncertainty: also ``case_entropy.nii.gz``, float32: -sum p ln p of the mean probabilities p of the classes, in
            nats, from 0 to the logarithm of the number of classes. With several networks also ``case_spread.nii.gz``:
            the standard deviation over the networks (population) of the probability of the class that is most probable
            on average, before ``remove_small``. And ``uncertainty.csv``, the means of both over the voxels that are
            labelled, empty where none is, added to those that are there. ``preview`` shows them too. Of regions: the
            sum of the entropies, and the largest spread, of each region by itself.
        dicom_seg: also ``case.dcm``, a DICOM SEG in the frame of the series that the scan was; needs highdicom.
        format: of the labels; by default that of the scan, NIfTI for DICOM.
        mirror: axes, 0 right, 1 anterior, 2 superior, as in the setting of the training: what is found is averaged over
            windows mirrored along every combination of them, 2 for one axis and 8 for three.
        best: take the weights of the best validation, rather than the last ones.
        overlap: of neighbouring windows, 0 to below 1, a part of their size.
        remove_small: ml; a connected piece of a label or region that is smaller is left out of it.
        overwrite: replace what is there, rather than skip it.
        quiet: no progress bar.

    Raises:
        FileError: when a run cannot be used, there is no scan, or a table in ``out`` has other columns.
        ValueError: when the runs have different labels, an option cannot be as it is given, or ``out`` holds the scans.
    """
    folders = [runs] if isinstance(runs, str | Path) else runs
    opened = [run for folder in folders for run in open_runs(folder)]
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` must be at least 0 and below 1, got {overlap}")
    mirror = checked(Settings, {"mirror": mirror}).mirror
    if not remove_small >= 0:
        raise ValueError(f"`remove_small` must be at least 0 ml, got {remove_small}")
    if dicom_seg:
        highdicom()
    if format not in (None, *_FORMATS):
        raise ValueError(f"`format` must be one of {', '.join(_FORMATS)}, got {format!r}")
    labels = opened[0].config.labels
    for run in opened[1:]:
        if run.config.labels != labels or run.config.images != opened[0].config.images:
            raise ValueError(f"`runs` must have the same labels and images, {run.folder} differs from the first")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [(run.network(best=best).to(device), run.config) for run in opened]
    cases, failed = find_scans(Path(scans), opened[0].config.images)
    out = Path(out)
    if out.resolve() in {(path if path.is_dir() else path.parent).resolve() for case in cases for path in case.images}:
        raise ValueError(f"`out` {out} holds the scans; give another folder for the labels")
    measures = measures_of(len(networks)) if uncertainty else ()
    if statistics:
        rows_in(out / "statistics.csv", [f"{name} ml" for name in labels.names])
    if uncertainty:
        rows_in(out / "uncertainty.csv", measures)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)

    found = Prediction({}, {}, failed, {}, {})
    for case in track(cases, "segmenting", disable=quiet):
        path = out / f"{case.name}.{format or _format_of(case)}"
        with failure_noted(case.images[0], failed):
            if path.exists() and not overwrite:
                label = read_segmentation(path)
                maps = {name: _read_map(_beside(path, case, name), label) for name in measures}
                found.skipped[case.name] = path
            else:
                options = {"overlap": overlap, "mirror": mirror, "keep": probabilities, "uncertainty": uncertainty}
                label, maps = _segment(case, path, networks, opened[0], preview, dicom_seg, remove_small, **options)
                found.written[case.name] = path
            voxels, millilitres = np.asarray(label.dataobj), voxel_millilitres(label.affine)
            volumes = {name: float(mask.sum() * millilitres) for name, mask in labels.masks(voxels)}
            found.volume_ml[case.name] = volumes
            if statistics:
                rounded = {f"{name} ml": round(one, 3) for name, one in volumes.items()}
                add_row(out / "statistics.csv", case.name, rounded)
            if uncertainty:
                found.uncertainty[case.name] = {name: _mean(values, voxels > 0) for name, values in maps.items()}
                rounded = {name: round(one, 6) for name, one in found.uncertainty[case.name].items()}
                add_row(out / "uncertainty.csv", case.name, rounded)
    return found


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean(dtype=float)) if where.any() else math.nan


def _beside(path: Path, case: Case, what: str) -> Path:
    """Of what lies beside the labels of a case."""
    return path.with_name(f"{case.name}_{what}.nii.gz")


def _read_map(path: Path, label: nib.Nifti1Image) -> np.ndarray:
    """A measure of uncertainty that lies beside labels that are there already.

    Raises:
        FileError: when it is not there, or cannot be of these labels.
    """
    if not path.exists():
        raise FileError(path, "is not there, but the labels are; segment the scan again (--overwrite)")
    image = read_volume(path)
    check_same_grid(path, image, label)
    return np.asarray(image.dataobj)


def _format_of(case: Case) -> str:
    """The format of a case's first image, as a name ends in it; NIfTI of all but NRRD and MetaImage."""
    ending = case.images[0].suffix.lower()
    return ending[1:] if ending in ENDINGS else "nii.gz"


def _segment(
    case: Case,
    path: Path,
    networks: Sequence[tuple[nn.Module, Configuration]],
    run: Run,
    preview: bool,
    dicom_seg: bool,
    remove_small: float,
    **options: Any,
) -> tuple[nib.Nifti1Image, dict[str, np.ndarray]]:
    """Writes the labels of a case, after all else of it that is asked for, and returns them with their uncertainty."""
    images = read_case_image(case)
    found = _labels(images, networks, **options)
    segmentation = found.labels
    if remove_small > 0:
        smallest = remove_small / voxel_millilitres(images[0].affine)
        segmentation = run.config.labels.changed(segmentation, lambda mask: without_small(mask, smallest))
    volumes = {} if found.probabilities is None else {"probabilities": found.probabilities}
    for what, values in (volumes | found.uncertainty).items():
        write_image(_beside(path, case, what), values, images[0].affine, "scanner")
    if preview:
        _preview(path, images[0], segmentation, found, run)
    if dicom_seg:
        write_dicom_seg(path.with_name(f"{case.name}.dcm"), segmentation, case.images[0], run.config.labels)
    write_label(path, segmentation, like=images[0])
    return nib.Nifti1Image(segmentation, images[0].affine), found.uncertainty


def predict_held_out(run: Run, dataset: Dataset, *, quiet: bool = False) -> None:
    """Segments the cases that a run was validated on, and puts their references beside them."""
    net, folder = run.network(), run.scores.parent
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    (folder / "references").mkdir(parents=True, exist_ok=True)
    for case in track(run.cases("validation", dataset), "segmenting what was held out", disable=quiet):
        with failing_as(case.images[0]):
            images = read_case_image(case)
            reference = read_case_label(case, dataset, images[0])
            segmentation = _labels(images, [(net, run.config)]).labels
            write_label(folder / "references" / f"{case.name}.nii.gz", np.asarray(reference.dataobj), like=images[0])
            write_label(folder / f"{case.name}.nii.gz", segmentation, like=images[0])


def _labels(
    images: Sequence[nib.Nifti1Image], networks: Sequence[tuple[nn.Module, Configuration]], **options: Any
) -> Segmentation:
    """The labels of a case, by `segment`; networks on the same grid share its volume."""
    volumes: dict[Any, MetaTensor] = {}
    views = []
    for net, config in networks:
        grid = (config.spacing, config.windows is None)
        if grid not in volumes:
            volumes[grid] = intensities_of(images, config)
        multiple = shape_multiple(config.network, config.strides)
        window = window_size(config.patch_size, multiple, volumes[grid].shape[1:])
        views.append(View(net, volumes[grid], window, config.labels, config.windows))
    return segment(views, images[0], **options)


def _preview(path: Path, image: nib.Nifti1Image, segmentation: np.ndarray, found: Segmentation, run: Run) -> None:
    """Three planes through the largest piece of what was found as a picture, and a page to look through the scan."""
    from attn3d.segmentation.reporting.viewer import Heat, case_page, view_of

    config, name = run.config, path.name.removesuffix(".nii.gz")
    center = None
    if segmentation.any():
        center = nib.affines.apply_affine(image.affine, middle_of_largest(segmentation > 0))
    figure = plot_segmentation(
        np.asarray(image.dataobj),
        {"network": segmentation},
        config.labels.legend,
        image.affine,
        center=center,
        window=None if config.windows is None else config.windows[0],
        title="trained on simulated scans" if config.simulated else "",
    )
    with finished_file(path.with_name(f"{name}.png")) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")
    heat = {}
    if found.probabilities is not None:
        for index, label in enumerate(config.labels.channels):
            if label in config.labels.names:
                heat[f"probability of {label}"] = Heat(found.probabilities[..., index], image.affine, (0.0, 1.0))
    most = {"entropy": highest_entropy(config.labels), "spread": 0.5}
    for measure, values in found.uncertainty.items():
        heat[measure] = Heat(values, image.affine, (0.0, most[measure]))
    view = view_of(
        name, image, {"network": segmentation}, config.labels.legend, heat=heat, windows=config.windows, center=center
    )
    picture = path.with_name(f"{name}.png").read_bytes()
    write_text(path.with_name(f"{name}.html"), case_page(view, picture, simulated=config.simulated))
