"""The command ``predict``: segments scans and writes labels in the geometry of each scan."""

import math
import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from rich.progress import track
from torch import nn

from attn3d.arguments import nonnegative_number, probability
from attn3d.plotting import plot_segmentation
from attn3d.segmentation.components import largest, middle_of_largest, without_small
from attn3d.segmentation.datasets import Case, Dataset, find_scans, read_case_image, read_case_label
from attn3d.segmentation.datasets.predictions import beside, check_beside, check_names, read_labels, remove_beside
from attn3d.segmentation.errors import FileError, failing_as, failure_noted
from attn3d.segmentation.fingerprint import darkest_of
from attn3d.segmentation.grid import voxel_millilitres
from attn3d.segmentation.inference import NetworkInput, Segmentation, highest_entropy, measures_of, segment
from attn3d.segmentation.io.dicom import is_dicom
from attn3d.segmentation.io.dicom_seg import write_dicom_seg
from attn3d.segmentation.io.files import check_format, read_map, write_label, write_map
from attn3d.segmentation.io.itk import ENDINGS
from attn3d.segmentation.io.tables import add_row, rows_in
from attn3d.segmentation.io.writing import finished_file, sweep, write_text
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import shape_multiple
from attn3d.segmentation.portable import on_grid, window_size
from attn3d.segmentation.precision import BFloat16
from attn3d.segmentation.processes import joined
from attn3d.segmentation.runs import Run, open_runs
from attn3d.segmentation.settings import Configuration, Settings, checked
from attn3d.segmentation.windows import warn_of_other_modality

_FORMATS = ("nii.gz", *(ending[1:] for ending in ENDINGS))
_MAPS = ("probabilities", *measures_of(2))  # the images beside labels


class Prediction(NamedTuple):
    """The result for a batch of scans.

    Attributes:
        written: the label file of each segmented case.
        skipped: the label file of each case whose labels existed.
        failed: the problem of each file that could not be segmented.
        volume_ml: volumes by case and label, for written and skipped cases.
        uncertainty: means over the labelled voxels by case and measure, for written and skipped cases; NaN without
            labelled voxels. Empty if uncertainty is not requested.
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
    bf16: bool = False,
    keep_largest: bool = False,
    remove_small: float = 0.0,
    overwrite: bool = False,
    quiet: bool = False,
) -> Prediction:
    """Segments scans with one or several trained networks.

    A scan may have any orientation, spacing or oblique affine; its labels are uint8 in exactly its geometry. A scan
    that cannot be used does not stop the others. Cases whose labels exist are skipped, so that a stopped batch can be
    continued.

    ``torchrun`` can start several processes, on one machine or on several that share ``scans`` and ``out``. Each
    process takes the next scan when it has finished the previous one. All processes must call this function, and all
    return the result of the whole batch. With GPUs, ``LOCAL_RANK`` selects that of each process.

    Args:
        runs: folders of finished trainings, or of cross-validations, whose folds are all used. The probabilities of
            several networks are averaged.
        scans: a NIfTI, NRRD or MHA file, a folder of them (``case_0000.nii.gz``, ``case_0001.nii.gz``, .. if a case has
            several images, or one 4-D file with all of them), a DICOM series or the folder of a data set.
        out: folder for the labels ``case.nii.gz``, or with the ending of ``format``. It must not be the folder of the
            scans. Several processes may write into it.
        statistics: also write ``statistics.csv`` with volumes in ml; an existing table is extended.
        preview: also write ``case.png`` with three planes, and ``case.html`` with a viewer.
        probabilities: also write ``case_probabilities.nii.gz``, float32, with the classes along the last
            axis: the background and the labels, or the regions.
        uncertainty: also write ``case_entropy.nii.gz``, float32: -sum p ln p of the mean probabilities p of the
            classes, in nats, from 0 to the logarithm of the number of classes. With several networks also
            ``case_spread.nii.gz``: the standard deviation over the networks (population) of the probability of the
            class that is most probable on average, before ``keep_largest`` and ``remove_small``. ``uncertainty.csv``
            has the means of both over the labelled voxels, and empty cells without labelled voxels; an existing table
            is extended. ``preview`` shows the images. For regions: the sum of their entropies, and the largest of their
            spreads.
        dicom_seg: also write ``case.dcm``, a DICOM SEG in the frame of reference of the series; needs highdicom. If a
            series lacks a header for it, only the labels are written, and the series is in ``failed`` too.
        format: file format of the labels; by default that of the scan, and NIfTI for DICOM.
        mirror: axes, 0 right, 1 anterior, 2 superior, as in the setting of the training. Predictions are averaged over
            windows mirrored along every combination of these axes: 2 for one axis and 8 for three.
        best: whether to use the weights of the best validation instead of the last ones.
        overlap: overlap of neighbouring windows as a fraction of their size, from 0 to below 1.
        bf16: whether to compute the networks in bfloat16 if this is faster here and agrees with float32, see
            `attn3d.segmentation.precision.BFloat16`.
        keep_largest: keep only the largest connected component of the labelled voxels, all labels together. For an
            organ or a brain, whose labels touch, this removes stray pieces; do not use it for lesions.
        remove_small: connected components of a label or region with a smaller volume in ml are removed from it.
        overwrite: whether to replace existing files instead of skipping them. Images of earlier labels are removed.
        quiet: whether to show no progress bar.

    Raises:
        FileError: when a run cannot be used, there is no scan, a table in ``out`` has other columns, or the name of a
            scan is that of a file to write for another one, such as ``case_entropy``.
        ProcessLost: when another process ended before the batch was finished, or did not answer for two hours.
        TypeError: when ``overlap`` or ``remove_small`` is not a number.
        ValueError: when the runs have different labels, an option is invalid, or ``out`` contains the scans.
    """
    out = Path(out)
    with joined() as processes:
        with processes.agreed():
            overlap = probability("overlap", overlap)
            mirror = checked(Settings, {"mirror": mirror}).mirror
            remove_small = nonnegative_number("remove_small", remove_small)
            if dicom_seg and not find_spec("highdicom"):
                raise ValueError("`dicom_seg` needs highdicom; python -m pip install 'attn3d[dicom]'")
            if format not in (None, *_FORMATS):
                raise ValueError(f"`format` must be one of {', '.join(_FORMATS)}, got {format!r}")
            opened = _opened(runs)
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            networks = [(run.network(best=best).to(device), run.config) for run in opened]
            if bf16:
                networks = [(BFloat16(network, config.labels), config) for network, config in networks]
            cases, failed = find_scans(Path(scans), opened[0].config.images)
            folders = {path if path.is_dir() else path.parent for case in cases for path in case.images}
            if out.resolve() in {folder.resolve() for folder in folders}:
                raise ValueError(f"`out` {out} contains the scans; give another folder for the labels")
            labels = opened[0].config.labels
            measures = measures_of(len(networks)) if uncertainty else ()
            paths = {case: out / f"{case.name}.{format or _format_of(case)}" for case in cases}
            check_names(paths)
            if statistics:
                rows_in(out / "statistics.csv", [f"{name} ml" for name in labels.names])
            if uncertainty:
                rows_in(out / "uncertainty.csv", measures)
            out.mkdir(parents=True, exist_ok=True)
            if not os.access(out, os.W_OK):  # noticed before the first scan is segmented
                raise ValueError(f"`out` {out} cannot be written to; give another folder")
            sweep(out)

        options: dict[str, Any] = {"keep_largest": keep_largest, "remove_small": remove_small, "overlap": overlap}
        options |= {"mirror": mirror, "keep": probabilities, "uncertainty": uncertainty, "progress": processes.show}
        found = Prediction({}, {}, failed, {}, {})
        batch = [*processes.gathered(paths)[0].items()]
        for case, path in processes.shared(batch, "segmenting", quiet=quiet):
            with failure_noted(case.images[0], failed):
                if path.exists() and not overwrite:
                    label, maps = _existing(path, labels, measures, probabilities, preview, dicom_seg)
                    found.skipped[case.name] = path
                else:
                    label, maps = _segment(case, path, networks, opened[0], failed, preview, dicom_seg, **options)
                    found.written[case.name] = path
                found.volume_ml[case.name] = volumes = _volumes(label, labels)
                if statistics:
                    rounded = {f"{name} ml": float(f"{one:.6g}") for name, one in volumes.items()}
                    add_row(out / "statistics.csv", case.name, rounded)
                if uncertainty:
                    found.uncertainty[case.name] = means = _means(maps, label)
                    rounded = {name: round(one, 6) for name, one in means.items()}
                    add_row(out / "uncertainty.csv", case.name, rounded)
        parts = zip(*processes.gathered(found), strict=True)  # of all processes
        return Prediction(*(dict(sorted(ChainMap(*fields).items())) for fields in parts))


def _opened(runs: Path | str | Sequence[Path | str]) -> list[Run]:
    """Opens the runs in folders, and checks that they have the same labels and number of images."""
    folders = [runs] if isinstance(runs, str | Path) else runs
    opened = [run for folder in folders for run in open_runs(folder)]
    if not opened:
        raise ValueError(f"`runs` must name at least one folder of a run, got {runs!r}")
    first, seen = opened[0].config, set[Path]()
    for run in opened:
        if (folder := run.folder.resolve()) in seen:
            raise ValueError(f"`runs` has the run {run.folder} twice; give each run once")
        seen.add(folder)
        if run.config.labels != first.labels or run.config.images != first.images:
            raise ValueError(
                f"`runs` must have the same labels and images: {run.folder} has {run.config.labels} and"
                f" {run.config.images} images, {opened[0].folder} has {first.labels} and {first.images}"
            )
    return opened


def _volumes(label: nib.Nifti1Image, labels: Labels) -> dict[str, float]:
    """The volume of each label in ml."""
    voxels, millilitres = np.asarray(label.dataobj), voxel_millilitres(label.affine)
    return {name: float(mask.sum() * millilitres) for name, mask in labels.masks(voxels)}


def _means(maps: Mapping[str, np.ndarray], label: nib.Nifti1Image) -> dict[str, float]:
    """The mean of each map over the labelled voxels; NaN if there are none."""
    where = np.asarray(label.dataobj) > 0
    return {name: float(one[where].mean(dtype=float)) if where.any() else math.nan for name, one in maps.items()}


def _format_of(case: Case) -> str:
    """The file ending for the labels of a case: that of its first image for NRRD and MetaImage, otherwise NIfTI."""
    ending = case.images[0].suffix.lower()
    return ending[1:] if ending in ENDINGS else "nii.gz"


def _existing(
    path: Path, labels: Labels, measures: Sequence[str], probabilities: bool, preview: bool, dicom_seg: bool
) -> tuple[nib.Nifti1Image, dict[str, np.ndarray]]:
    """The existing labels of a case and their uncertainty. The other requested files must exist as well."""
    label = read_labels(path, labels)
    check_beside(path, probabilities, preview, dicom_seg)
    return label, {name: np.asarray(read_map(beside(path, name), label).dataobj) for name in measures}


def _segment(
    case: Case,
    path: Path,
    networks: Sequence[tuple[nn.Module, Configuration]],
    run: Run,
    failed: dict[str, str],
    preview: bool,
    dicom_seg: bool,
    keep_largest: bool,
    remove_small: float,
    **options: Any,
) -> tuple[nib.Nifti1Image, dict[str, np.ndarray]]:
    """Writes the requested files of a case, its labels last, and returns the labels and their uncertainty.

    Labels are also written if no DICOM SEG can be; the reason is then in ``failed``.
    """
    if dicom_seg and not (case.images[0].is_dir() or is_dicom(case.images[0])):
        raise FileError(case.images[0], "is not a DICOM series, which a DICOM SEG refers to; omit --dicom-seg")
    images = read_case_image(case)
    check_format(path, images[0])
    warn_of_other_modality(case.images[0], darkest_of(images[0]), run.config.windows, run.darkest)
    found = _predicted(images, networks, **options)
    segmentation = found.labels
    if keep_largest:
        segmentation = segmentation * largest(segmentation > 0)
    if remove_small > 0:
        smallest = round(remove_small / voxel_millilitres(images[0].affine), 3)  # a piece of this volume stays
        segmentation = run.config.labels.changed(segmentation, lambda mask: without_small(mask, smallest))
    maps = found.uncertainty | ({} if found.probabilities is None else {"probabilities": found.probabilities})
    if path.exists():  # so that neither a stopped nor a finished batch has labels beside files of other labels
        remove_beside(path)
        path.unlink()
    for stale in {beside(path, what) for what in _MAPS} & {*path.parent.iterdir()}:
        stale.unlink()  # written for other labels, by a batch that was killed before it wrote them
    for what, values in maps.items():
        write_map(beside(path, what), values, images[0])
    if preview:
        _preview(path, case.name, images[0], segmentation, found, run)
    if dicom_seg:
        with failure_noted(case.images[0], failed):
            write_dicom_seg(beside(path, "dcm"), segmentation, case.images[0], run.config.labels)
    write_label(path, segmentation, like=images[0])
    return nib.Nifti1Image(segmentation, images[0].affine), found.uncertainty


def predict_held_out(run: Run, dataset: Dataset, *, quiet: bool = False) -> None:
    """Segments the held-out cases of a run, and writes their references to a folder beside them."""
    net, folder = run.network(), run.scores.parent
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    (folder / "references").mkdir(parents=True, exist_ok=True)
    for case in track(run.cases("validation", dataset), "segmenting held-out cases", disable=quiet):
        with failing_as(case.images[0]):
            images = read_case_image(case)
            reference = read_case_label(case, dataset, images[0])
            segmentation = _predicted(images, [(net, run.config)]).labels
            write_label(folder / "references" / f"{case.name}.nii.gz", np.asarray(reference.dataobj), like=images[0])
            write_label(folder / f"{case.name}.nii.gz", segmentation, like=images[0])


def _predicted(
    images: Sequence[nib.Nifti1Image], networks: Sequence[tuple[nn.Module, Configuration]], **options: Any
) -> Segmentation:
    """The result of `segment` for a case. Networks with the same grid share the resampled volume."""
    volumes: dict[Any, MetaTensor] = {}
    inputs = []
    for net, config in networks:
        grid = (config.spacing, config.windows is None)
        if grid not in volumes:
            volumes[grid] = on_grid(images, config.spacing, config.windows)
        multiple = shape_multiple(config.network, config.strides)
        window = window_size(config.patch_size, multiple, volumes[grid].shape[1:])
        inputs.append(NetworkInput(net, volumes[grid], window, config.labels, config.windows))
    return segment(inputs, images[0], **options)


def _preview(
    path: Path, name: str, image: nib.Nifti1Image, segmentation: np.ndarray, found: Segmentation, run: Run
) -> None:
    """Writes a picture of three planes through the largest predicted component, and a page with a viewer."""
    from attn3d.segmentation.reporting.viewer import Heat, case_page, view_of

    config, labels, picture = run.config, run.config.labels, beside(path, "png")
    center = None
    if segmentation.any():
        center = nib.affines.apply_affine(image.affine, middle_of_largest(segmentation > 0))
    figure = plot_segmentation(
        np.asarray(image.dataobj),
        {"network": segmentation},
        labels.legend,
        image.affine,
        center=center,
        window=None if config.windows is None else config.windows[0],
        title="trained on simulated scans" if config.simulated else "",
    )
    with finished_file(picture) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")
    heat = {}
    if found.probabilities is not None:
        for index, channel in enumerate(labels.channels):
            if channel in labels.names:
                heat[f"probability of {channel}"] = Heat(found.probabilities[..., index], image.affine, (0.0, 1.0))
    most = {"entropy": highest_entropy(labels), "spread": 0.5}
    for measure, values in found.uncertainty.items():
        heat[measure] = Heat(values, image.affine, (0.0, most[measure]))
    view = view_of(
        name, image, {"network": segmentation}, labels.legend, heat=heat, windows=config.windows, center=center
    )
    write_text(beside(path, "html"), case_page(view, picture.read_bytes(), simulated=config.simulated))
