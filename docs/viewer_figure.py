"""The picture of the viewer, docs/figures/viewer.png: a SIMULATED haemorrhage.

    python -m docs.viewer_figure

It takes Chromium, which is driven as in the tests.
"""

import io
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from attn3d.segmentation import simulate
from attn3d.segmentation.components import middle_of_largest
from attn3d.segmentation.datasets import read_case_image, read_case_label
from attn3d.segmentation.reporting.viewer import case_page, view_of
from attn3d.segmentation.windows import BRAIN_WINDOWS
from tests.browser import Browser

FIGURE = Path(__file__).parent / "figures" / "viewer.png"
CASES = 3  # of which the one with the largest haemorrhage is shown


def main() -> None:
    """Simulates a few cases, writes the page of one and takes a picture of it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = simulate(Path(folder) / "data", CASES, quiet=True)
        pairs = [(case, read_case_image(case)[0]) for case in dataset.cases]
        triples = [(case, image, np.asarray(read_case_label(case, dataset, image).dataobj)) for case, image in pairs]
        case, image, reference = max(triples, key=lambda triple: int((triple[2] > 0).sum()))
        view = view_of(
            f"{case.name}, SIMULATED",
            image,
            {"reference": reference},
            dataset.labels,
            windows=BRAIN_WINDOWS,
            center=nib.affines.apply_affine(image.affine, middle_of_largest(reference > 0)),
        )
        page = Path(folder) / "case.html"
        page.write_text(case_page(view, b"", simulated=False), encoding="utf-8")
        with Browser(page, Path(folder) / "browser", height=1150) as browser:
            browser.wait_for("!document.querySelector('.still')")
            picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    small = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(FIGURE, optimize=True)


if __name__ == "__main__":
    main()
