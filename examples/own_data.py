"""Train on your own scans, and segment new ones.

    python examples/own_data.py --data my_cohort --scans new_scans

``my_cohort`` is a folder in any layout of docs/your-data.md. The simplest layout has ``images/`` and ``labels/`` with
files of the same names. Settings that are derived from the data are printed; to override them, edit SETTINGS.
"""

from pathlib import Path
from typing import Annotated

import typer

from attn3d import segmentation

SETTINGS = {
    "network": "UNet",  # DynUNet, the network of nnU-Net, gives finer borders and is slow on a CPU
    "attention": ("cbam", {"reduction": 4}),
    "at": ("skip",),
    # "spacing": (0.5, 0.5, 5.0),  "patch_voxels": 2**21,  "windows": [[40, 80]],  "batch_size": 4, ..
}


def main(
    data: Annotated[Path, typer.Option(help="A folder of scans and labels.")],
    scans: Annotated[Path, typer.Option(help="Scans to segment.")],
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("own_data"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cases.")] = 30,
) -> None:
    """Train, segment, report."""
    print(segmentation.find_dataset(data))
    run = segmentation.train(data, out=out / "run", epochs=epochs, **SETTINGS)
    found = segmentation.predict(run.folder, scans, out / "predictions", statistics=True, preview=True)
    for file, problem in found.failed.items():
        print(f"left out: {file}: {problem}")
    print(f"{len(found.written)} scans segmented in {out / 'predictions'}; see {segmentation.report(run)}")


if __name__ == "__main__":
    typer.run(main)
