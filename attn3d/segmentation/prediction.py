"""The command ``predict``: from scans to labels in the geometry that they came in."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from rich.progress import track
from scipy import ndimage
from torch import Tensor, nn

from attn3d.plotting import plot_segmentation
from attn3d.segmentation.datasets import Case, Dataset, find_scans, read_case_image, read_case_label
from attn3d.segmentation.errors import failing_as, failure_noted
from attn3d.segmentation.files import read_segmentation, write_image, write_label
from attn3d.segmentation.inference import View, segment, window_size
from attn3d.segmentation.networks import shape_multiple
from attn3d.segmentation.preprocessing import intensities_of, to_channels
from attn3d.segmentation.runs import Run, open_runs
from attn3d.segmentation.settings import Configuration
from attn3d.segmentation.statistics import Statistics, voxel_millilitres
from attn3d.segmentation.writing import finished_file, sweep


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
        scans: a NIfTI file, a folder of them (``case_0000.nii.gz``, ``case_0001.nii.gz``, .. where a case has
            several images), a DICOM series or the folder of a data set.
        out: folder for ``case.nii.gz``, another than that of the scans. Several processes may write into it.
        statistics: also ``statistics.json`` and ``statistics.csv``, the volumes in ml, added to those that are there.
        preview: also ``case.png``.
        probabilities: also ``case_probabilities.nii.gz``, float32 with a class in each last index.
        tta: average with what is found in mirrored windows, left and right exchanged: the flip of the training.
        best: take the weights of the best validation, rather than the last ones.
        overlap: of neighbouring windows, 0 to below 1, a part of their size.
        remove_small: ml; a connected piece of a label that is smaller becomes background.
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
    volumes = Statistics(out, labels)
    if statistics:
        volumes.check()
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)

    found = Prediction({}, {}, failed, {})
    for case in track(cases, "segmenting", disable=quiet):
        path = out / f"{case.name}.nii.gz"
        with failure_noted(case.images[0], failed):
            if path.exists() and not overwrite:
                label = read_segmentation(path)
                found.skipped[case.name] = path
            else:
                label = _segment(case, path, networks, opened[0], preview, probabilities, tta, overlap, remove_small)
                found.written[case.name] = path
            found.volume_ml[case.name] = volumes.of(label)
            if statistics:
                volumes.add({case.name: found.volume_ml[case.name]})
    return found


def _segment(
    case: Case,
    path: Path,
    networks: Sequence[tuple[nn.Module, Configuration]],
    run: Run,
    preview: bool,
    probabilities: bool,
    tta: bool,
    overlap: float,
    remove_small: float,
) -> nib.Nifti1Image:
    """Writes the labels of a case, after all else of it that is asked for."""
    images = read_case_image(case)
    segmentation, kept = _labels(images, networks, overlap=overlap, mirrored=tta, keep=probabilities)
    if remove_small > 0:
        segmentation = _without_small(segmentation, remove_small / voxel_millilitres(images[0].affine))
    if kept is not None:
        write_image(path.with_name(f"{case.name}_probabilities.nii.gz"), kept, images[0].affine, "scanner")
    if preview:
        with finished_file(path.with_name(f"{case.name}.png")) as unfinished:
            _preview(images[0], segmentation, run).savefig(unfinished, dpi=100, format="png")
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
        views.append(View(net, volumes[grid], window, partial(_shown, windows=config.windows)))
    classes, kept = segment(views, images[0], **options)
    return np.array([0, *sorted(networks[0][1].labels)], np.uint8)[classes], kept


def _shown(patches: Tensor, windows: Sequence[Sequence[float]] | None) -> Tensor:
    return torch.stack([to_channels(patch, windows) for patch in patches])


def _without_small(segmentation: np.ndarray, voxels: float) -> np.ndarray:
    """Without the pieces of a label that have fewer voxels; they are connected by faces, edges and corners."""
    kept = segmentation.copy()
    for value in np.unique(segmentation[segmentation > 0]):
        pieces, _ = ndimage.label(segmentation == value, structure=np.ones((3, 3, 3)))
        small = np.bincount(pieces.ravel()) < voxels
        small[0] = False
        kept[small[pieces]] = 0
    return kept


def _preview(image: nib.Nifti1Image, segmentation: np.ndarray, run: Run) -> Any:
    """Three planes through the largest piece of what was found."""
    windows = run.config.windows
    return plot_segmentation(
        np.asarray(image.dataobj),
        {"network": segmentation},
        run.config.labels,
        image.affine,
        center=nib.affines.apply_affine(image.affine, _middle_of_largest(segmentation)) if segmentation.any() else None,
        window=None if windows is None else windows[0],
        title="trained on simulated scans" if run.config.simulated else "",
    )


def _middle_of_largest(segmentation: np.ndarray) -> np.ndarray:
    """The voxel of the largest connected piece that is nearest to its centre of mass."""
    pieces, _ = ndimage.label(segmentation > 0, structure=np.ones((3, 3, 3)))
    largest = np.argwhere(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())
    return largest[np.linalg.norm(largest - largest.mean(axis=0), axis=1).argmin()]
