"""Takes a picture of the viewer with Chromium, docs/figures/viewer.png: ``python -m docs.viewer_figure``."""

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
from docs.report_figures import write
from tests.browser import Browser


def main() -> None:
    """Simulates three cases and takes a picture of the page of the last one, which has a large haemorrhage."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = simulate(Path(folder) / "data", 3, quiet=True)
        case = dataset.cases[-1]
        (image,) = read_case_image(case)
        reference = np.asarray(read_case_label(case, dataset, image).dataobj)
        center = nib.affines.apply_affine(image.affine, middle_of_largest(reference > 0))
        name = f"{case.name}, SIMULATED"
        view = view_of(
            name, image, {"reference": reference}, dataset.labels.legend, windows=BRAIN_WINDOWS, center=center
        )
        page = Path(folder) / "case.html"
        page.write_text(case_page(view, b"", simulated=False), encoding="utf-8")
        with Browser(page, Path(folder) / "browser", height=1150) as browser:
            browser.wait_for("!document.querySelector('.still')")
            write(Image.open(io.BytesIO(browser.picture())), "viewer.png")


if __name__ == "__main__":
    main()
