"""Draws the pictures of docs/simulated-cohort.md and writes its table.

``python docs/cohort_figures.py [FOLDER]`` uses the default cohort of 60 cases in the folder, or simulates it there. The
default is a temporary folder. It takes about a minute on one core.
"""

import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image
from tables import between_marks, markdown

from attn3d.plotting import plot_segmentation
from attn3d.segmentation import HAEMORRHAGES, simulate, threshold_segmentation
from attn3d.segmentation.datasets import read_case_image, read_case_label

DOCS = Path(__file__).parent
PAGE = DOCS / "simulated-cohort.md"
KINDS = ("", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


class Scan(NamedTuple):
    """A scan, its labels and the mask of a threshold. The first axis points right, the last one up."""

    image: nib.Nifti1Image
    labels: np.ndarray
    found: np.ndarray

    def millilitres(self, value: int) -> float:
        """The volume of a label."""
        return float((self.labels == value).sum() * abs(np.linalg.det(self.image.affine[:3, :3])) / 1000)

    def dice(self, value: int | None = None) -> float:
        """The Dice of the threshold for one kind, or for any. Voxels of the other kinds are left out."""
        true = self.labels > 0 if value is None else self.labels == value
        found = self.found & (true | (self.labels == 0))
        return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def read(folder: Path) -> list[Scan]:
    """Reads the cohort in a folder."""
    dataset, scans = simulate(folder), []
    for case in dataset.cases:
        (image,) = read_case_image(case)
        label = nib.as_closest_canonical(read_case_label(case, dataset, image))
        image = nib.as_closest_canonical(image)
        scans.append(Scan(image, np.asarray(label.dataobj), threshold_segmentation(image) > 0))
    return scans


def table(scans: list[Scan]) -> str:
    """The number of cases with each kind, its volume and intensities, and the Dice of the threshold."""
    rows = [["kind", "cases", "ml: median (least to most)", "HU: median (middle 90 %)", "threshold's Dice"]]
    for value, name in HAEMORRHAGES.items():
        bleeding = [scan for scan in scans if (scan.labels == value).any()]
        volumes = [scan.millilitres(value) for scan in bleeding]
        units = np.concatenate([scan.image.get_fdata()[scan.labels == value] for scan in bleeding])
        low, middle, high = np.percentile(units, (5, 50, 95))
        extent = f"{np.median(volumes):.1f} ({min(volumes):.1f} to {max(volumes):.1f})"
        dice = f"{np.mean([scan.dice(value) for scan in bleeding]):.2f}"
        blood = f"{middle:.0f} ({low:.0f} to {high:.0f})"
        rows.append([f"{value} {name}, {KINDS[value]}", str(len(bleeding)), extent, blood, dice])
    bleeding = [scan for scan in scans if scan.labels.any()]
    overall = f"{np.mean([scan.dice() for scan in bleeding]):.2f}"
    rows.append(["any", f"{len(bleeding)} of {len(scans)}", "", "", overall])
    return markdown(rows, "lrrrr")


def picture(scan: Scan, center: np.ndarray, columns: dict[str, np.ndarray], title: str) -> np.ndarray:
    """The pixels of a picture of a scan in three planes through a voxel."""
    image, memory = scan.image, BytesIO()
    figure = plot_segmentation(
        image.get_fdata(), columns, HAEMORRHAGES | {6: "48 to 95 HU"} if len(columns) > 1 else HAEMORRHAGES,
        image.affine, center=nib.affines.apply_affine(image.affine, center), margin=300, window=(40, 80), title=title,
    )  # fmt: skip
    figure.savefig(memory, format="png", dpi=40)
    return np.asarray(Image.open(memory).convert("RGB"))


def middle_of(mask: np.ndarray) -> np.ndarray:
    """The voxel of a mask that is nearest to the median of its voxels."""
    voxels = np.argwhere(mask)
    return voxels[np.linalg.norm(voxels - np.median(voxels, axis=0), axis=1).argmin()]


def draw(scans: list[Scan]) -> None:
    """Draws a case of each kind with a volume near the median, and a case of three kinds with the threshold."""
    shown = []
    for value in HAEMORRHAGES:
        bleeding = sorted((s for s in scans if (s.labels == value).any()), key=lambda s: s.millilitres(value))
        alone = [scan for scan in bleeding[len(bleeding) // 4 :] if len(np.unique(scan.labels)) == 2] or bleeding
        scan = alone[len(alone) // 2]
        title = f"simulated, {KINDS[value]}, {scan.millilitres(value):.0f} ml"
        shown.append(picture(scan, middle_of(scan.labels == value), {"label": scan.labels}, title))
    height = max(pixels.shape[0] for pixels in shown)
    row = np.hstack([np.pad(pixels, ((0, height - pixels.shape[0]), (0, 0), (0, 0))) for pixels in shown])
    Image.fromarray(row).save(DOCS / "figures" / "simulated_cohort.png", optimize=True)

    scan, axial = max(((scan, axial) for scan in scans for axial in range(scan.labels.shape[2])), key=kinds_shown)
    center = middle_of(scan.labels == scan.labels[:, :, axial].max())
    center[2] = axial
    columns = {"label": scan.labels, "threshold": 6 * scan.found.astype(int)}
    pixels = picture(scan, center, columns, "simulated, and a threshold")
    Image.fromarray(pixels).save(DOCS / "figures" / "simulated_threshold.png", optimize=True)


def kinds_shown(place: tuple[Scan, int]) -> tuple[int, int]:
    """The number of kinds in an axial slice, and the number of voxels of the smallest one."""
    labels = place[0].labels[:, :, place[1]]
    counts = np.bincount(labels.ravel(), minlength=6)[1:]
    return int((counts > 0).sum()), int(counts[counts > 0].min(initial=place[0].labels.size))


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        cohort = read(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "cohort")
        draw(cohort)
        PAGE.write_text(between_marks(PAGE.read_text(), "cohort", table(cohort)))
