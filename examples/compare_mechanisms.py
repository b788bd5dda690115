"""Compare mechanisms with a network without attention, with the same budget and several seeds each.

    python examples/compare_mechanisms.py --mechanisms eca,coord,cbam --seeds 5

By default it uses simulated scans: it shows how to compare, not which mechanism to use. Pass the folder of your own
data with --data. The command can be stopped and restarted. `attn3d compare` has all options.
"""

import math
from pathlib import Path
from typing import Annotated

import typer

from attn3d import segmentation


def main(
    mechanisms: Annotated[str, typer.Option(help="Separated by commas.")] = "eca,coord,cbam",
    at: Annotated[str, typer.Option(help="Kinds of site, separated by commas.")] = "skip",
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings per mechanism.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 12,
    cases: Annotated[int, typer.Option(min=4, help="Number of simulated scans, without --data.")] = 40,
    data: Annotated[Path | None, typer.Option(help="A folder of scans and labels.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("compare_mechanisms"),
) -> None:
    """Train all networks and report which differences exceed chance."""
    if data is None:
        data = segmentation.simulate(out.with_name(out.name + "_cohort"), cases).folder
    names, kinds = ([one.strip() for one in text.split(",")] for text in (mechanisms, at))
    found = segmentation.compare(data, out=out, mechanisms=names, at=kinds, seeds=seeds, epochs=epochs)
    verdicts = {True: "inside the noise", False: "beyond the noise", None: "too few seeds to estimate the noise"}
    for name, one in found["mechanisms"].items():
        print(f"{name}: Dice {one['mean']:.3f}, {one['parameters']:,} parameters, {one['seconds']:.0f} s")
        if name != "none":
            low, high = one["difference_interval"] or (-math.inf, math.inf)  # of a single seed
            says = verdicts[one["inside_noise"]]
            print(f"  difference to none {one['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}: {says}")


if __name__ == "__main__":
    typer.run(main)
