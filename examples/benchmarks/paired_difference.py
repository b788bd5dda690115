"""The mean difference of the Dice of two segmentations of the same cases, and its 95 % confidence interval.

    attn3d evaluate one references --out one_scores
    attn3d evaluate other references --out other_scores
    python -m examples.benchmarks.paired_difference one_scores/scores.json other_scores/scores.json

The interval is that of the mean of the differences by case (Student's t).
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from attn3d.plotting import confidence_interval

Scores = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A scores.json of attn3d evaluate or train.")]


def main(one: Scores, other: Scores) -> None:
    """Print the Dice of other minus that of one for each label. Labels with the same value may have other names."""
    first, second = (json.loads(path.read_text()) for path in (one, other))
    names = {str(value): name for name, value in second["labels"].items()}
    values = [sorted(map(str, scores["labels"].values())) for scores in (first, second)]
    if values[0] != values[1]:
        raise typer.BadParameter(
            f"{one} and {other} must have the same label values, got {', '.join(values[0])} and {', '.join(values[1])}"
        )
    shared = first["cases"].keys() & second["cases"].keys()
    if alone := len(first["cases"].keys() ^ shared) + len(second["cases"].keys() ^ shared):
        print(f"{alone} cases are in only one of the files and left out")
    for name, value in first["labels"].items():
        dice = [
            (first["cases"][case][name]["dice"], second["cases"][case][names[str(value)]]["dice"]) for case in shared
        ]
        differences = [there - here for here, there in dice if here is not None and there is not None]
        if len(differences) < 2:
            raise typer.BadParameter(
                f"{one} and {other} must share at least 2 cases with {name}, got {len(differences)}"
            )
        low, high = confidence_interval(differences)
        print(f"{name}: {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}, {len(differences)} cases")


if __name__ == "__main__":
    typer.run(main)
