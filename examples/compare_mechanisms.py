"""Does attention help, or is it noise? The same budget for each mechanism and for none, several times.

    python examples/compare_mechanisms.py --mechanisms eca,coord,cbam --seeds 5

On simulated scans: how to compare, not which to take. With data of your own, pass its folder with --data. The command
can be stopped and started again; `attn3d compare` is the same with all options.
"""

from pathlib import Path
from typing import Annotated

import typer

from attn3d import segmentation


def main(
    mechanisms: Annotated[str, typer.Option(help="Separated by commas.")] = "eca,coord,cbam",
    at: Annotated[str, typer.Option(help="Kinds of site, separated by commas.")] = "skip",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training.")] = 12,
    cases: Annotated[int, typer.Option(min=4, help="Simulated scans, where there is no --data.")] = 40,
    data: Annotated[Path | None, typer.Option(help="A folder of scans and labels.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("compare_mechanisms"),
) -> None:
    """Train them all and say what differs by more than chance."""
    if data is None:
        data = segmentation.simulate(out.with_name(out.name + "_cohort"), cases).folder
    found = segmentation.compare(
        data, out=out, mechanisms=mechanisms.split(","), at=at.split(","), seeds=seeds, epochs=epochs
    )
    for name, one in found["mechanisms"].items():
        verdict = ""
        if one.get("difference_interval"):
            low, high = one["difference_interval"]
            noise = "inside the noise" if one["inside_noise"] else "beyond the noise"
            verdict = f"; to none {one['difference']:+.3f}, 95 % {low:+.3f} to {high:+.3f}: {noise}"
        print(f"{name:10s} Dice {one['mean']:.3f}, {one['parameters']:,} parameters, {one['seconds']:.0f} s{verdict}")


if __name__ == "__main__":
    typer.run(main)
