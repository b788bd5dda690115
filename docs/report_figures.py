"""The pictures of the documentation that come from the report of a run on simulated scans.

    python examples/haemorrhage.py && python docs/report_figures.py haemorrhage/run

The page as a whole, docs/figures/report.png, is a picture of a browser's window: it is taken where Chromium is
installed, and otherwise left as it is.
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
    """Takes the median case, the attention maps and the top of the page out of a report."""
    page = run / "report.html"
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in embedded]
    _best, median, _worst, attention, *_ = pictures
    write(median, "haemorrhage.png")
    write(attention, "report_attention.png")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium here: figures/report.png is left as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},2250"]
        command = [browser, *options, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        write(Image.open(shot), "report.png")


def write(picture: Image.Image, name: str) -> None:
    """At the width of a page and with 256 colours, which keeps the repository small."""
    height = round(picture.height * WIDTH / picture.width)
    small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(FIGURES / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
