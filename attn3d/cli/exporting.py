"""The command ``export``: a trained network for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from attn3d.cli.app import one_line_errors
from attn3d.cli.segmentation import Out


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished training.")],
    out: Out,
    format: Annotated[
        Literal["bundle", "onnx"], typer.Option(help="A MONAI Bundle, or ONNX with its preprocessing as JSON.")
    ] = "bundle",
) -> None:
    """Write a trained network for use without this application: a MONAI Bundle, or ONNX.

    To use a bundle, put scans into its data/ and run in its folder: `python -m monai.bundle run --config_file
    configs/inference.json`. ONNX has a dynamic batch and size; examples/onnx_runtime.py runs it.
    """
    import attn3d.segmentation as segmentation

    with one_line_errors("export"):
        print(segmentation.export(run, out, format=format))
