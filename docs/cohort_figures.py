"""Draws the pictures of docs/simulated-cohort.md and writes its table.

``python docs/cohort_figures.py [FOLDER]`` takes the default cohort of 60 cases from the folder, or simulates it there;
without one, in a temporary folder. It takes about a minute on one core.
"""

import re
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from attn3d.plotting import plot_segmentation
from attn3d.segmentation import HAEMORRHAGES, simulate, threshold_segmentation
from attn3d.segmentation.datasets import Dataset, read_case_image, read_case_label

DOCS = Path(__file__).parent
PAGE = DOCS / "simulated-cohort.md"
TABLE = re.compile(r"(?<=<!-- cohort -->\n).*(?=<!-- /cohort -->)", re.DOTALL)
BRAIN_WINDOW = (40, 80)
LONG_NAMES = {
    "EDH": "epidural",
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SAH": "subarachnoid",
    "SDH": "subdural",
}

Scan = tuple[nib.Nifti1Image, np.ndarray]


def read(dataset: Dataset) -> list[Scan]:
    """All scans with their labels, the first axis to the right and the last upwards."""
    scans = []
    for case in dataset.cases:
        (image,) = read_case_image(case)
        label = read_case_label(case, dataset, image)
        scans.append((nib.as_closest_canonical(image), np.asarray(nib.as_closest_canonical(label).dataobj)))
    return scans


def millilitres(scan: Scan, value: int) -> float:
    """The volume of a label."""
    image, labels = scan
    return float((labels == value).sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """Dice's coefficient of two masks, of which one is not empty."""
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def table(scans: list[Scan]) -> str:
    """How many cases have each kind, how large it is, and what a threshold makes of it."""
    masks = [threshold_segmentation(image) > 0 for image, _ in scans]
    lines = [
        "| kind | cases | ml: median (least to most) | HU: median (middle 90 %) | threshold's Dice |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for value, name in HAEMORRHAGES.items():
        bleeding = [(scan, mask) for scan, mask in zip(scans, masks, strict=True) if (scan[1] == value).any()]
        volumes = [millilitres(scan, value) for scan, _ in bleeding]
        units = np.concatenate([image.get_fdata()[labels == value] for (image, labels), _ in bleeding])
        low, middle, high = np.percentile(units, (5, 50, 95))
        # Blood of another kind is neither right nor wrong here.
        own = [(mask & ((labels == value) | (labels == 0)), labels == value) for (_, labels), mask in bleeding]
        scores = [dice(found, true) for found, true in own]
        lines.append(
            f"| {value} {name}, {LONG_NAMES[name]} | {len(bleeding)} "
            f"| {np.median(volumes):.1f} ({min(volumes):.1f} to {max(volumes):.1f}) "
            f"| {middle:.0f} ({low:.0f} to {high:.0f}) | {np.mean(scores):.2f} |"
        )
    bleeding = [(mask, labels > 0) for (_, labels), mask in zip(scans, masks, strict=True) if labels.any()]
    overall = np.mean([dice(found, true) for found, true in bleeding])
    lines.append(f"| any | {len(bleeding)} of {len(scans)} | | | {overall:.2f} |")
    return "\n".join(lines)


def middle_of(mask: np.ndarray) -> np.ndarray:
    """The voxel of a mask that is nearest to all of them."""
    voxels = np.argwhere(mask)
    return voxels[np.linalg.norm(voxels - np.median(voxels, axis=0), axis=1).argmin()]


def picture(
    image: nib.Nifti1Image, center: np.ndarray, columns: dict[str, np.ndarray], names: dict[int, str], title: str
) -> np.ndarray:
    """A scan in three planes through a voxel, as pixels."""
    figure = plot_segmentation(
        image.get_fdata(),
        columns,
        names,
        image.affine,
        center=nib.affines.apply_affine(image.affine, center),
        margin=300,
        window=BRAIN_WINDOW,
        title=title,
    )
    return pixels(figure)


def pixels(figure: Figure) -> np.ndarray:
    """What the figure looks like."""
    memory = BytesIO()
    figure.savefig(memory, format="png", dpi=40)
    return np.asarray(Image.open(memory).convert("RGB"))


def beside(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures in a row, on black."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0))) for picture in pictures]
    return Image.fromarray(np.hstack(padded))


def draw(scans: list[Scan]) -> None:
    """One case of each kind, of a volume near the median; and a case of three kinds beside the threshold."""
    shown = []
    for value, name in HAEMORRHAGES.items():
        bleeding = sorted((scan for scan in scans if (scan[1] == value).any()), key=lambda s: millilitres(s, value))
        alone = [scan for scan in bleeding[len(bleeding) // 4 :] if len(np.unique(scan[1])) == 2] or bleeding
        scan = alone[len(alone) // 2]
        title = f"simulated, {LONG_NAMES[name]}, {millilitres(scan, value):.0f} ml"
        shown.append(picture(scan[0], middle_of(scan[1] == value), {"label": scan[1]}, HAEMORRHAGES, title))
    beside(shown).save(DOCS / "figures" / "simulated_cohort.png", optimize=True)

    image, labels, axial = max(((*scan, axial) for scan in scans for axial in range(scan[1].shape[2])), key=kinds_shown)
    center = middle_of(labels == labels[:, :, axial].max())
    center[2] = axial
    columns = {"label": labels, "threshold": 6 * threshold_segmentation(image)}
    shown = [picture(image, center, columns, HAEMORRHAGES | {6: "48 to 95 HU"}, "simulated, and a threshold")]
    beside(shown).save(DOCS / "figures" / "simulated_threshold.png", optimize=True)


def kinds_shown(slice_of: tuple[nib.Nifti1Image, np.ndarray, int]) -> tuple[int, int]:
    """How many kinds an axial slice shows, and how many voxels of the one that it shows least of."""
    _, labels, axial = slice_of
    counts = np.bincount(labels[:, :, axial].ravel(), minlength=6)[1:]
    return int((counts > 0).sum()), int(counts[counts > 0].min(initial=labels.size))


def main(folder: Path) -> None:
    """Simulates, draws and rewrites the page's table."""
    scans = read(simulate(folder))
    draw(scans)
    text = table(scans)
    PAGE.write_text(TABLE.sub(f"\n{text}\n\n", PAGE.read_text()))
    print(text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as temporary:
            main(Path(temporary) / "cohort")
