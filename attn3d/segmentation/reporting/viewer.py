"""The viewer of a page: volumes are embedded as NIfTI, and NiiVue shows them.

The scan, its labels and heat maps are embedded in their own geometry. The page loads nothing from the internet.
"""

import base64
import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from attn3d.plotting.hanging import contrast
from attn3d.plotting.labels import label_colors
from attn3d.plotting.scene import heat_colors, heat_limits
from attn3d.segmentation.reporting.templates import render
from attn3d.segmentation.windows import BRAIN_WINDOWS

VOXELS = 12_000_000  # largest number of voxels of all scans of a page: 512 x 512 x 45, about 15 MB for CT
_NAMES: dict[tuple[float, ...], str] = dict(zip(BRAIN_WINDOWS, ("brain", "subdural", "soft tissue"), strict=True))
_SHADES = 9  # number of colours of heat maps; NiiVue interpolates between them
_NOTHING = 1e-30  # smaller values are shown as 0: for a range below it, the float32 slope in the file could be 0


class Layer(NamedTuple):
    """A volume of a viewer.

    Attributes:
        kind: "scan", "labels" or "heat".
        name: its name in the page.
        volume: a compressed NIfTI file in base64.
        shown: whether it is visible at first.
        limits: the intensities shown in black and white, or the weights shown as transparent and bright.
        labels: name and colour of each label value.
    """

    kind: str
    name: str
    volume: str
    shown: bool = True
    limits: tuple[float, float] | None = None
    labels: Mapping[int, tuple[str, str]] | None = None


class View(NamedTuple):
    """A scan in the viewer.

    Attributes:
        name: name of the case.
        layers: the layers, the scan first.
        center: the point in mm where the planes intersect at first.
        windows: the name, and the intensities shown in black and white, of each preset.
        thinned: a sentence that says which voxels were left out; empty if none were.
    """

    name: str
    layers: list[Layer]
    center: list[float]
    windows: list[tuple[str, float, float]]
    thinned: str


class Heat(NamedTuple):
    """Weights or probabilities over a scan. Their grid may differ from that of the scan.

    Attributes:
        values: (X, Y, Z).
        affine: maps voxel indices to millimetres.
        limits: the values shown as transparent and bright; by default a range of nearly all values.
    """

    values: np.ndarray
    affine: np.ndarray
    limits: tuple[float, float] | None = None


def view_of(
    name: str,
    image: nib.Nifti1Image,
    segmentations: Mapping[str, np.ndarray],
    labels: Mapping[int, str],
    *,
    heat: Mapping[str, Heat] | None = None,
    windows: Sequence[tuple[float, float]] | None = None,
    center: Sequence[float] | None = None,
    voxels: int = VOXELS,
) -> View:
    """Creates the view of a scan and its layers. At first only the scan and the last segmentation are visible.

    Args:
        name: name of the case.
        image: the scan.
        segmentations: label arrays with the scan's shape, by name.
        labels: label values and their names.
        heat: heat maps by name.
        windows: level and width of each preset; the first one is used at first. By default there are no presets, and
            nearly all intensities are shown.
        center: the point in mm where the planes intersect at first; by default the middle of the scan.
        voxels: the largest number of voxels to embed. A larger scan and its labels are thinned to every second voxel
            along the finest axis, repeatedly.
    """
    data = np.asarray(image.dataobj)
    if center is None:
        center = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    presets = [
        (f"{_NAMES.get((level, width), '')} {level:g} / {width:g} HU".strip(), level - width / 2, level + width / 2)
        for level, width in windows or ()
    ]
    low, high = presets[0][1:] if presets else contrast(data, None)
    steps = _steps(image, voxels)
    volume = _embedded(data, image.affine, "scan", steps)
    layers = [Layer("scan", "scan", volume, limits=(float(low), float(high)))]
    colors = {value: (labels[value], color) for value, color in label_colors(labels).items()}
    for which, segmentation in segmentations.items():
        volume = _embedded(segmentation, image.affine, "labels", steps)
        layers.append(Layer("labels", which, volume, shown=which == [*segmentations][-1], labels=colors))
    for which, (values, affine, ends) in (heat or {}).items():
        same = values.shape == image.shape and np.array_equal(affine, image.affine)
        volume = _embedded(values, affine, "heat", steps if same else (1, 1, 1))
        layers.append(Layer("heat", which, volume, shown=False, limits=ends or heat_limits(values)))
    return View(name, layers, [float(mm) for mm in center], presets, _thinned(image.shape, steps))


def case_page(view: View, picture: bytes, *, simulated: bool) -> str:
    """The HTML page of one case, with a picture (PNG) for browsers in which the viewer does not run."""
    still = "data:image/png;base64," + base64.b64encode(picture).decode()
    return render("case.html", view=view, still=still, simulated=simulated, niivue=niivue(), heat=heat_shades())


@cache
def niivue() -> str:
    """The script of NiiVue, compressed, in base64."""
    script = files("attn3d.segmentation.reporting").joinpath("niivue", "niivue.umd.js").read_bytes()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()


def heat_shades() -> dict[str, list[int]]:
    """The colour map of heat maps for NiiVue: red, green, blue, opacity and position, all from 0 to 255."""
    positions = np.linspace(0, 255, _SHADES)
    shades = np.rint(255 * heat_colors()(positions / 255)).astype(int)
    return {name: shades[:, index].tolist() for index, name in enumerate("RGBA")} | {
        "I": np.rint(positions).astype(int).tolist()
    }


def _embedded(data: np.ndarray, affine: np.ndarray, kind: str, steps: Sequence[int]) -> str:
    """A volume as compressed NIfTI in base64, with every ``steps``-th voxel along each axis.

    Whole numbers are stored exactly. Other intensities are rounded to a 65,535th of their range, weights to a 255th.
    """
    stored: Any = {"scan": np.int16, "labels": np.uint8, "heat": np.uint8}[kind]
    kept = data[tuple(slice(None, None, step) for step in steps)]
    kept = np.where((kept > -_NOTHING) & (kept < _NOTHING), 0, kept)  # not abs, which is wrong for the int16 -32768
    ends = np.iinfo(stored)
    if kept.min() >= ends.min and kept.max() <= ends.max and np.array_equal(kept, np.rint(kept)):
        kept = kept.astype(stored)
    image = nib.Nifti1Image(kept, affine @ np.diag([*steps, 1.0]))
    image.set_data_dtype(stored)  # nibabel scales numbers that are not whole by a slope and an intercept
    image.set_sform(image.affine, "scanner")
    image.set_qform(image.affine, "scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    if kind == "labels":
        image.header.set_intent("label")
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()


def _steps(image: nib.Nifti1Image, voxels: int) -> list[int]:
    """The step along each axis (1, 2, 4, ..) so that at most ``voxels`` are left; the finest axis is thinned first."""
    steps, spacing = [1, 1, 1], nib.affines.voxel_sizes(image.affine)
    while np.prod(_kept(image.shape, steps)) > voxels:
        thinnable = [axis for axis in range(3) if image.shape[axis] > steps[axis]]
        steps[min(thinnable, key=lambda axis: spacing[axis] * steps[axis])] *= 2
    return steps


def _kept(shape: Sequence[int], steps: Sequence[int]) -> list[int]:
    return [-(-size // step) for size, step in zip(shape, steps, strict=True)]


def _thinned(shape: Sequence[int], steps: Sequence[int]) -> str:
    if max(steps) == 1:
        return ""
    all_of, some = (" × ".join(map(str, sizes)) for sizes in (shape, _kept(shape, steps)))
    return (
        f"The scan has {all_of} voxels, which is too many for a page. It is shown with {some} of them: one of every "
        f"{' × '.join(map(str, steps))}. The labels are shown at the same voxels."
    )
