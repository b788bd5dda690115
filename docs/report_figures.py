"""Takes pictures for the documentation from the report of a run on simulated scans.

    python examples/haemorrhage.py && python docs/report_figures.py haemorrhage/run

docs/figures/report.png is a screenshot of the whole page. It is only taken if Chromium is installed; otherwise the
existing picture is kept.
"""

import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FIGURES = Path(__file__).parent / "figures"
WIDTH = 1180  # pixels of the page


def main(run: Path) -> None:
    """Writes the pictures of the median case, of the attention maps and of the top of the page."""
    page = run / "report.html"
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in embedded]
    _best, median, _worst, attention, *_ = pictures
    write(median, "haemorrhage.png")
    write(attention, "report_attention.png")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("Chromium is not installed: figures/report.png is unchanged")
        return
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},2250"]
        command = [browser, *options, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        write(Image.open(shot), "report.png")


def write(picture: Image.Image, name: str) -> None:
    """Writes a picture with the width of a page and 256 colours, which keeps the repository small."""
    height = round(picture.height * WIDTH / picture.width)
    small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(FIGURES / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
