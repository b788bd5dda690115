"""The mean difference of the Dice of two segmentations of the same cases, and its 95 % confidence interval.

    attn3d evaluate one references --labels run --out one_scores
    attn3d evaluate other references --labels run --out other_scores
    python -m examples.benchmarks.paired_difference one_scores/scores.json other_scores/scores.json

The labels need the same names in both files. The interval is that of the mean of the differences by case (Student's t).
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from attn3d.plotting import confidence_interval

Scores = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A scores.json of attn3d evaluate or train.")]


def main(one: Scores, other: Scores) -> None:
    """Print the Dice of other minus that of one for each label."""
    first, second = (json.loads(path.read_text()) for path in (one, other))
    shared = first["cases"].keys() & second["cases"].keys()
    if first["labels"] != second["labels"] or len(shared) < 2:
        raise typer.BadParameter("the files must have the same labels and two or more cases in common")
    if alone := len(first["cases"].keys() ^ second["cases"].keys()):
        print(f"{alone} cases are in only one of the files and left out")
    for name in first["labels"]:
        differences = [second["cases"][case][name]["dice"] - first["cases"][case][name]["dice"] for case in shared]
        low, high = confidence_interval(differences)
        print(f"{name}: {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}, {len(differences)} cases")


if __name__ == "__main__":
    typer.run(main)
