"""Takes pictures for the documentation from the output of `examples/haemorrhage.py`, on simulated scans.

    python examples/haemorrhage.py && python docs/report_figures.py haemorrhage

docs/figures/report.png and viewer.png show pages. They are only taken if Chromium is installed; otherwise the existing
pictures are kept.
"""

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # to import `tests`

from tests.browser import EXECUTABLE, Browser

FIGURES = Path(__file__).parent / "figures"
WIDTH = 1180  # pixels of the page
SCAN = "simulated_001"  # has three kinds of haemorrhage


def main(folder: Path) -> None:
    """Writes the pictures of the median case and of the attention maps, and those of the report and of a viewer."""
    report = folder / "run" / "report.html"
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", report.read_text(encoding="utf-8"))
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in embedded]
    _best, median, _worst, attention, *_ = pictures
    write(median, "haemorrhage.png")
    write(attention, "report_attention.png")
    if EXECUTABLE is None:
        print("Chromium is not installed: figures/report.png and figures/viewer.png are unchanged")
        return
    photograph(report, "report.png", 2250)
    photograph(folder / "predictions" / f"{SCAN}.html", "viewer.png", 1250, "!document.querySelector('.still')")


def photograph(page: Path, name: str, height: int, ready: str = "true") -> None:
    """Writes a picture of the top of a page as soon as a line of JavaScript is true."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Browser(page, folder, width=WIDTH, height=height) as browser,
    ):
        browser.wait_for(ready)
        write(Image.open(io.BytesIO(browser.picture())), name)


def write(picture: Image.Image, name: str) -> None:
    """Writes a picture with the width of a page and 256 colours, which keeps the repository small."""
    height = round(picture.height * WIDTH / picture.width)
    small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(FIGURES / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
