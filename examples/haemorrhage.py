"""Segment five kinds of haemorrhage on simulated head CT: from files to a report.

    python examples/haemorrhage.py
    python examples/haemorrhage.py --attention none --out plain

The scans are SIMULATED: the scores show that all parts work together, and say nothing about patients. The network is
trained on one cohort and tested on another, with a threshold of 48 to 95 HU as the baseline.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import dice

from attn3d import segmentation
from attn3d.segmentation import HAEMORRHAGES


def main(
    attention: Annotated[str, typer.Option(help="A mechanism, or none.")] = "coord",
    at: Annotated[str, typer.Option(help="Kinds of site, separated by commas.")] = "skip",
    cases: Annotated[int, typer.Option(min=2, help="Number of training cases.")] = 120,
    test_cases: Annotated[int, typer.Option(min=1, help="Number of test cases.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cases.")] = 24,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("haemorrhage"),
) -> None:
    """Simulate, train, predict, evaluate and report."""
    start = time.perf_counter()
    cohort = segmentation.simulate(out / "cohort", cases, seed=0)
    unseen = segmentation.simulate(out / "unseen", test_cases, seed=1)

    run = segmentation.train(
        cohort.folder,
        out=out / "run",
        attention=attention,
        at=[kind.strip() for kind in at.split(",")],
        epochs=epochs,
        spacing=(1.5, 1.5, 5.0),  # finer than the scans: the first convolution of the UNet halves the resolution
        patch_size=(64, 64, 20),
        around_labels=0.95,
        learning_rate=6e-3,
        held_out=0.05,
        validate_every=max(1, epochs // 4),
    )
    segmentation.predict(
        run.folder, unseen.folder / "imagesTr", out / "predictions", mirror=[0], statistics=True, preview=True
    )
    scores = segmentation.evaluate(out / "predictions", unseen.folder / "labelsTr", out / "scores", labels=HAEMORRHAGES)
    page = segmentation.report(run)

    rows = compare_with_threshold(unseen, scores)
    Console().print(table(rows, test_cases))
    seconds = time.perf_counter() - start
    result = {"simulated": True, "dice": rows, "seconds": round(seconds)}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{seconds / 60:.1f} minutes; report: {page}")


def compare_with_threshold(unseen: segmentation.Dataset, scores: dict) -> dict[str, dict[str, float]]:
    """Mean Dice of each kind, and of blood of any kind, over the cases that have it.

    The threshold cannot distinguish the kinds, so its Dice for a kind leaves out the voxels of the other kinds.
    """
    found = {name: [] for name in (*HAEMORRHAGES.values(), "any label")}
    for case in unseen.cases:
        image = segmentation.read_image(case.images[0])
        labels = np.asarray(segmentation.read_segmentation(case.label[0], image).dataobj)
        blood = segmentation.threshold_segmentation(image) > 0
        for value, name in HAEMORRHAGES.items():
            if (labels == value).any():
                found[name].append(1 - dice((blood & np.isin(labels, (0, value))).ravel(), (labels == value).ravel()))
        if labels.any():
            found["any label"].append(1 - dice(blood.ravel(), labels.ravel() > 0))
    rows = {
        name: {"network": scores["overall"][name]["dice_with"], "threshold": float(np.mean(values))}
        for name, values in found.items()
        if values
    }
    kinds = [rows[name] for name in HAEMORRHAGES.values() if name in rows]
    if kinds:
        rows["mean of kinds"] = {of: float(np.mean([row[of] for row in kinds])) for of in ("network", "threshold")}
    return rows


def table(rows: dict[str, dict[str, float]], cases: int) -> Table:
    """A table of the network and the threshold."""
    result = Table(title=f"Dice on {cases} unseen simulated scans", box=box.SIMPLE_HEAD)
    result.add_column("Haemorrhage")
    for heading in ("Network", "48..95 HU"):
        result.add_column(heading, justify="right")
    for name, row in rows.items():
        result.add_row(name, f"{row['network']:.3f}", f"{row['threshold']:.3f}")
    return result


if __name__ == "__main__":
    typer.run(main)
