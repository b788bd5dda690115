"""The tables that the commands print."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_by_case(found: Mapping[str, Mapping[str, float]], title: str, words: Callable[[float], str]) -> None:
    """Prints a row for each case, with its numbers in ``words``; NaN is a dash."""
    if not found:
        return
    table = new_table(title, "Case", numbers=next(iter(found.values())))
    for case, numbers in found.items():
        table.add_row(case, *("–" if math.isnan(one) else words(one) for one in numbers.values()))
    show(table)


def print_scores(scores: Mapping[str, Any], title: str) -> None:
    """Prints the scores of the cohort, a row for each label, and any scores of lesions and probabilities."""
    surface = f"Surface\nDice {scores['tolerance_mm']:g} mm"
    table = new_table(
        title + (" (simulated)" if scores.get("simulated") else ""),
        "Label",
        numbers=("Cases", "Dice", "HD95\nmm", surface, "Lesions\nfound", "False\nlesions"),
        caption="Dice, HD95 and surface Dice: means over the cases with the label",
    )
    for label, one in scores["overall"].items():
        numbers = [(one["dice_with"], 3), (one["hd95_mm_with"], 1), (one["surface_dice_with"], 3)]
        table.add_row(
            label,
            f"{one['cases_with']} of {one['cases']}",
            *(_number(value, digits) for value, digits in numbers),
            f"{one['lesions_found']} of {one['lesions']}",
            str(one["false_lesions"]),
        )
    show(table)
    if "lesions" in scores:
        _print_lesions(scores)
    if "calibration" in scores:
        one, margin = scores["calibration"]["overall"], scores["calibration"]["margin_mm"]
        print(
            f"Within {margin:g} mm of labelled voxels: expected calibration error "
            f"{_number(one['expected_calibration_error'])}, AUC of entropy for errors {_number(one['error_auc'])}"
        )


def _print_lesions(scores: Mapping[str, Any]) -> None:
    """Prints the scores of lesions matched one to one, of all cases together, a row for each label."""
    table = new_table(
        "Lesions of all cases, matched at an IoU above 0.5",
        "Label",
        numbers=("Lesions", "Predicted", "Matched", "PQ", "RQ", "SQ", "Dice"),
        caption="Panoptic, recognition and segmentation quality; mean Dice of matched lesions",
    )
    for label, one in scores["overall"].items():
        counts = (one["lesions"], one["lesions_predicted"], one["lesions_matched"])
        names = ("panoptic_quality", "recognition_quality", "segmentation_quality", "lesion_dice")
        table.add_row(label, *map(str, counts), *(_number(one[f"{name}_pooled"]) for name in names))
    show(table)


def print_comparison(found: Mapping[str, Any]) -> None:
    """Prints the Dice and the costs of each mechanism, and whether its difference to none is inside the noise."""
    table = new_table(
        f"Mean Dice{' (simulated scans)' if found['simulated'] else ''}",
        "Mechanism",
        numbers=("Dice", "Difference\nto none", "Parameters", "Seconds"),
        caption=f"Means over the seeds ± their {found['level']:.0%} interval; median time of a training",
    )
    for name, one in found["mechanisms"].items():
        difference = _mean(one["difference"], one["difference_interval"], "+") if "difference" in one else ""
        mean = _mean(one["mean"], one["interval"])
        table.add_row(name, mean, difference, f"{one['parameters']:,}", f"{one['seconds']:.0f}")
    show(table)
    for name, one in found["mechanisms"].items():
        if name != "none" and one["inside_noise"] is None:
            seeds = "one seed is" if one["difference_interval"] is None else "two seeds are"
            print(f"{name}: {seeds} not enough to estimate the noise")
        elif name != "none":
            print(f"{name}: the difference is {'inside' if one['inside_noise'] else 'beyond'} the noise")


def _mean(mean: float, interval: Sequence[float] | None, sign: str = "") -> str:
    """Formats a mean and half the length of its interval, which is symmetric."""
    return f"{mean:{sign}.3f}" + ("" if interval is None else f" ± {interval[1] - mean:.3f}")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def new_table(title: str, *words: str, numbers: Iterable[str], caption: str | None = None) -> Table:
    """An empty table: first the columns of words, then those of numbers, which are aligned at the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=caption)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show(table: Table) -> None:
    """Prints a table, with whole columns even if it is wider than the terminal or the 80 columns of a file.

    Names of cases and labels are not interpreted as markup.
    """
    console = Console(markup=False, emoji=False)
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    console.print(table)
