"""The command ``predict``: from scans to labels in the geometry that they came in."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from rich.progress import track
from torch import nn

from attn3d.plotting import plot_segmentation
from attn3d.segmentation.components import middle_of_largest, without_small
from attn3d.segmentation.datasets import Case, Dataset, find_scans, read_case_image, read_case_label
from attn3d.segmentation.dicom_seg import highdicom, write_dicom_seg
from attn3d.segmentation.errors import FileError, failing_as, failure_noted
from attn3d.segmentation.files import read_segmentation, write_image, write_label
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.inference import View, segment
from attn3d.segmentation.itk import ENDINGS
from attn3d.segmentation.locks import locked
from attn3d.segmentation.networks import shape_multiple
from attn3d.segmentation.portable import window_size
from attn3d.segmentation.preprocessing import intensities_of
from attn3d.segmentation.runs import Run, open_runs
from attn3d.segmentation.settings import Configuration
from attn3d.segmentation.writing import as_cell, finished_file, read_table, sweep, write_table, write_text

_FORMATS = ("nii.gz", *(ending[1:] for ending in ENDINGS))


class Prediction(NamedTuple):
    """What came of a batch of scans.

    Attributes:
        written: the labels' file by the name of the case.
        skipped: the same of the cases that were there already.
        failed: why there is none, by the name of the file.
        volume_ml: by case and label, of both.
    """

    written: dict[str, Path]
    skipped: dict[str, Path]
    failed: dict[str, str]
    volume_ml: dict[str, dict[str, float]]


def predict(
    runs: Path | str | Sequence[Path | str],
    scans: Path | str,
    out: Path | str,
    *,
    statistics: bool = False,
    preview: bool = False,
    probabilities: bool = False,
    dicom_seg: bool = False,
    format: Literal["nii.gz", "nrrd", "mha"] | None = None,
    tta: bool = False,
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
        dicom_seg: also ``case.dcm``, a DICOM SEG in the frame of the series that the scan was; needs highdicom.
        format: of the labels; by default that of the scan, NIfTI for DICOM.
        tta: average with what is found in mirrored windows, left and right exchanged: the flip of the training.
        best: take the weights of the best validation, rather than the last ones.
        overlap: of neighbouring windows, 0 to below 1, a part of their size.
        remove_small: ml; a connected piece of a label or region that is smaller is left out of it.
        overwrite: replace what is there, rather than skip it.
        quiet: no progress bar.

    Raises:
        FileError: when a run cannot be used, there is no scan, or ``out`` has statistics of other labels.
        ValueError: when the runs have different labels, ``remove_small`` is negative, or ``out`` holds the scans.
    """
    folders = [runs] if isinstance(runs, str | Path) else runs
    opened = [run for folder in folders for run in open_runs(folder)]
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` must be at least 0 and below 1, got {overlap}")
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
    table = out / "statistics.csv"
    if statistics:
        _volumes_in(table, labels.names)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)

    found = Prediction({}, {}, failed, {})
    for case in track(cases, "segmenting", disable=quiet):
        path = out / f"{case.name}.{format or _format_of(case)}"
        with failure_noted(case.images[0], failed):
            if path.exists() and not overwrite:
                label = read_segmentation(path)
                found.skipped[case.name] = path
            else:
                options = {"overlap": overlap, "mirrored": tta, "keep": probabilities}
                label = _segment(case, path, networks, opened[0], preview, dicom_seg, remove_small, **options)
                found.written[case.name] = path
            voxels, millilitres = np.asarray(label.dataobj), voxel_millilitres(label.affine)
            volumes = {name: float(mask.sum() * millilitres) for name, mask in labels.masks(voxels)}
            found.volume_ml[case.name] = volumes
            if statistics:
                add_volumes(table, case.name, volumes)
    return found


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
) -> nib.Nifti1Image:
    """Writes the labels of a case, after all else of it that is asked for."""
    images = read_case_image(case)
    segmentation, kept = _labels(images, networks, **options)
    if remove_small > 0:
        smallest = remove_small / voxel_millilitres(images[0].affine)
        segmentation = run.config.labels.changed(segmentation, lambda mask: without_small(mask, smallest))
    if kept is not None:
        write_image(path.with_name(f"{case.name}_probabilities.nii.gz"), kept, images[0].affine, "scanner")
    if preview:
        _preview(path, images[0], segmentation, kept, run)
    if dicom_seg:
        write_dicom_seg(path.with_name(f"{case.name}.dcm"), segmentation, case.images[0], run.config.labels)
    write_label(path, segmentation, like=images[0])
    return nib.Nifti1Image(segmentation, images[0].affine)


def predict_held_out(run: Run, dataset: Dataset, *, quiet: bool = False) -> None:
    """Segments the cases that a run was validated on, and puts their references beside them."""
    net, folder = run.network(), run.scores.parent
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    (folder / "references").mkdir(parents=True, exist_ok=True)
    for case in track(run.cases("validation", dataset), "segmenting what was held out", disable=quiet):
        with failing_as(case.images[0]):
            images = read_case_image(case)
            reference = read_case_label(case, dataset, images[0])
            segmentation, _ = _labels(images, [(net, run.config)])
            write_label(folder / "references" / f"{case.name}.nii.gz", np.asarray(reference.dataobj), like=images[0])
            write_label(folder / f"{case.name}.nii.gz", segmentation, like=images[0])


def _labels(
    images: Sequence[nib.Nifti1Image], networks: Sequence[tuple[nn.Module, Configuration]], **options: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """The labels of a case and their probabilities, by `segment`; networks on the same grid share its volume."""
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


def _volumes_in(path: Path, labels: Collection[str]) -> pd.DataFrame:
    """The volumes in ml in a table that `predict` wrote, empty where there is none.

    Raises:
        FileError: when it cannot be added to.
    """
    columns = ["case", *(as_cell(f"{name} ml") for name in labels)]
    table = read_table(path) if path.exists() else pd.DataFrame(columns=columns)
    if list(table.columns) != columns:
        raise FileError(path, "has volumes of other labels; give another folder")
    return table


def add_volumes(path: Path, case: str, volumes: Mapping[str, float]) -> None:
    """Adds the volumes of a case to a table, one process at a time, in place of what it has of that case.

    Args:
        path: of the table, ``statistics.csv``.
        case: its name.
        volumes: in ml by label.
    """
    with locked(path.parent, wait=True):
        table = _volumes_in(path, volumes)
        row = [as_cell(case), *(round(one, 3) for one in volumes.values())]
        table = pd.concat([table[table["case"] != row[0]], pd.DataFrame([row], columns=table.columns)])
        write_table(path, table.sort_values("case"))


def _preview(
    path: Path, image: nib.Nifti1Image, segmentation: np.ndarray, probabilities: np.ndarray | None, run: Run
) -> None:
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
    if probabilities is not None:
        for index, label in enumerate(config.labels.channels):
            if label in config.labels.names:
                heat[f"probability of {label}"] = Heat(probabilities[..., index], image.affine, (0.0, 1.0))
    view = view_of(
        name, image, {"network": segmentation}, config.labels.legend, heat=heat, windows=config.windows, center=center
    )
    picture = path.with_name(f"{name}.png").read_bytes()
    write_text(path.with_name(f"{name}.html"), case_page(view, picture, simulated=config.simulated))
