"""The pictures of a report, in the forms that an HTML page can embed."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import SpatialCrop, SpatialPad
from nibabel import Nifti1Image
from nibabel.affines import apply_affine
from torch import Tensor

from attn3d.arguments import spec_words
from attn3d.maps import attention_maps
from attn3d.plotting import plot_attention_maps, plot_lesions
from attn3d.plotting.attention import HEAT, heat_volumes
from attn3d.plotting.charts import INK
from attn3d.segmentation.components import middle_of_largest
from attn3d.segmentation.configuration import Configuration
from attn3d.segmentation.datasets import Dataset, read_case_image, read_case_label
from attn3d.segmentation.grid import label_to_grid
from attn3d.segmentation.io.files import read_segmentation
from attn3d.segmentation.labels import ANY
from attn3d.segmentation.portable import on_grid, to_channels
from attn3d.segmentation.reporting.viewer import VOXELS, Heat, View, view_of
from attn3d.segmentation.runs import Run

_SITES = 3  # side by side; more would be too small


class Picture(NamedTuple):
    """A PNG as a data URI, its size in pixels of the page, its caption, and the scan for the viewer."""

    data: str
    width: int
    height: int
    caption: str
    view: View | None = None


def png(figure: Figure, caption: str, view: View | None = None) -> Picture:
    """A figure as PNG, with twice the resolution of the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    width, height = figure.get_size_inches() * 72
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(data, round(width), round(height), caption, view)


def svg(figure: Figure) -> Markup:
    """A chart as SVG. Its text has the font of the page; black and yellow follow the colours of the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attn3d"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    return Markup(drawing.replace(INK, "currentColor").replace("#f0e442", "var(--yellow)"))


def lesion_figures(run: Run, dataset: Dataset, scores: Mapping[str, Any]) -> list[Picture]:
    """The best, the median and the worst held-out case of those with a lesion in the reference or the prediction.

    Of an even number of cases, the worse one of the two in the middle is the median.
    """
    cases = {case.name: case for case in run.cases("validation", dataset)}
    ranked = _ranked(scores)
    if not ranked:
        return []
    last = len(ranked) - 1
    chosen = {0: "Best", (last + 1) // 2: "Median", last: "Worst"} if last else {0: "Only"}  # no median of two
    pictures = []
    for rank, what in chosen.items():
        name = ranked[rank]
        images = read_case_image(cases[name])
        image, label = images[0], read_case_label(cases[name], dataset, images[0])
        found = read_segmentation(run.folder / "validation" / f"{name}.nii.gz", image)
        labels = run.config.labels
        reference = labels.without_ignored(np.asarray(label.dataobj))
        segmentations = {"reference": reference, "network": np.asarray(found.dataobj)}
        figure = plot_lesions(
            np.asarray(image.dataobj),
            segmentations,
            labels.legend,
            image.affine,
            window=None if run.config.windows is None else run.config.windows[0],
            title=_title(run, name),
        )
        lesions = next(one for one in segmentations.values() if one.any())
        view = view_of(
            name,
            image,
            segmentations,
            labels.legend,
            heat=_heat(run, images, label if reference.any() else found),
            windows=run.config.windows,
            center=apply_affine(image.affine, middle_of_largest(lesions > 0)),
            voxels=VOXELS // len(chosen),
        )
        says = [_says(label, line) for label, line in scores["cases"][name].items() if label != ANY]
        pictures.append(png(figure, f"{what} case, {name}: {', '.join(filter(None, says))}.", view))
    return pictures


def _heat(run: Run, images: Sequence[Nifti1Image], label: Nifti1Image) -> dict[str, Heat]:
    """The attention maps around the largest lesion of a case, a volume for each site and kind of weights."""
    if run.config.attention is None:
        return {}
    patch, _, maps = _attention(run, images, label)
    return {
        f"{site}: {HEAT[kind.split()[0]]}".replace("\n", ", "): Heat(values, patch.affine.numpy())
        for site, weights in maps.items()
        for kind, values in heat_volumes(weights).items()
    }


def _attention(
    run: Run, images: Sequence[Nifti1Image], label: Nifti1Image
) -> tuple[MetaTensor, tuple[int, ...], dict[str, dict[str, Tensor]]]:
    """The input patch around the largest lesion of a case, the query voxel, and the attention maps."""
    patch, voxel = lesion_patch(images, label, run.config)
    return patch, voxel, attention_maps(run.network(), patch[None], voxels=[voxel])


def attention_figures(run: Run, dataset: Dataset, scores: Mapping[str, Any]) -> list[Picture]:
    """The attention maps in a patch around the largest lesion of a case.

    It is the median case of `lesion_figures`; without a lesion in its reference, the patch is around a predicted one.
    Without any case of them, it is the middle of the first case.
    """
    config = run.config
    if config.attention is None:
        return []
    cases = {case.name: case for case in run.cases("validation", dataset)}
    ranked = _ranked(scores)
    name = ranked[len(ranked) // 2] if ranked else next(iter(scores["cases"]))
    images = read_case_image(cases[name])
    label = read_case_label(cases[name], dataset, images[0])
    where = f"around the largest lesion of {name}" if ranked else f"in the middle of {name}, which has no lesion"
    if ranked and not _main(scores["cases"][name])["reference_ml"]:
        label = read_segmentation(run.folder / "validation" / f"{name}.nii.gz", images[0])
        where = f"around the largest predicted lesion of {name}"
    patch, voxel, maps = _attention(run, images, label)
    sites = [site for site, weights in maps.items() if weights]
    pictures = []
    for first in range(0, len(sites), _SITES):
        figure = plot_attention_maps(
            patch,
            maps,
            site=sites[first : first + _SITES],
            voxels=[voxel],
            planes=("axial", "coronal"),
            window=None if config.windows is None else (0.0, 2.0),  # the range of the windowed input is -1 to 1
            title=_title(run, name),
        )
        pictures.append(png(figure, f"{spec_words(config.attention)} {where}."))
    return pictures


def lesion_patch(
    images: Sequence[Nifti1Image], label: Nifti1Image, config: Configuration
) -> tuple[MetaTensor, tuple[int, ...]]:
    """The input patch around the largest lesion of a case, and the voxel of the lesion's middle in it."""
    mask = config.labels.without_ignored(np.asarray(label_to_grid(label, config.spacing)[0])) > 0
    volume = on_grid(images, config.spacing, config.windows)
    seen = MetaTensor(to_channels(volume.as_tensor(), config.windows), affine=volume.affine)
    return patch_around(seen, mask, config.patch_size)


def patch_around(volume: MetaTensor, mask: np.ndarray, size: Sequence[int]) -> tuple[MetaTensor, tuple[int, ...]]:
    """A patch centred on the largest component of a mask, and the voxel of the component's middle in it.

    The patch is moved if it would leave the scan.
    """
    center = middle_of_largest(mask) if mask.any() else np.array(mask.shape) // 2
    padded = SpatialPad(size, method="end", mode="edge")(volume)
    low = np.clip(center - np.array(size) // 2, 0, np.array(padded.shape[1:]) - size)
    patch = cast(MetaTensor, SpatialCrop(roi_start=low, roi_end=low + size)(padded))
    return patch, tuple(int(place) for place in center - low)


def _says(label: str, line: Mapping[str, Any]) -> str:
    """The result for a label of a case; empty if the label is neither in the reference nor in the prediction."""
    if line["reference_ml"] and line["volume_ml"]:
        return f"{label} Dice {line['dice']:.2f}"
    if line["reference_ml"]:
        return f"{label} missed"
    return f"{label} found where there is none" if line["volume_ml"] else ""


def _title(run: Run, name: str) -> str:
    """The name of a case, with a note if it is simulated, since pictures can be copied out of the page."""
    return f"{name}, simulated" if run.config.simulated else name


def _ranked(scores: Mapping[str, Any]) -> list[str]:
    """The cases with a lesion in the reference or the prediction, by the Dice of all labels as one, best first."""
    lines = {name: _main(labels) for name, labels in scores["cases"].items()}
    there = [name for name, line in lines.items() if line["reference_ml"] or line["volume_ml"]]
    return sorted(there, key=lambda name: -lines[name]["dice"])


def _main(labels: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of all labels as one."""
    return labels[ANY] if ANY in labels else next(iter(labels.values()))
