"""Charts of a training and of comparisons between mechanisms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from attn3d.plotting.hanging import COLORS, color_of
from attn3d.plotting.words import LINE, legend_below, verbatim, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#57606a"  # readable on white and on black


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Returns the confidence interval of the mean by Student's t, mean ± t s / √n; (-inf, inf) for a single value.

    Raises:
        ValueError: if there is no value.
    """
    from scipy import stats

    if len(values) == 0:
        raise ValueError(f"`values` must have at least one number, got {values!r}")
    mean, count = sum(values) / len(values), len(values)
    if count < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * stats.sem(values))
    return mean - half, mean + half


def plot_comparison(
    results: Mapping[str, Mapping[str, Any]], *, plain: str = "none", title: str = "", score: str = "Dice"
) -> Figure:
    """Plots the scores of networks with one mechanism each: every seed, the mean and its 95 % confidence interval.

    Args:
        results: for every mechanism a dictionary of ``"dice"``, one value for each seed, and ``"parameters"``.
        plain: key of the network without a mechanism, which is drawn as a line with its interval as a band.
        title: title of the figure.
        score: name of the values.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: if there is nothing to compare, or a mechanism has no ``"dice"``.
    """
    from matplotlib.figure import Figure

    mechanisms = [name for name in results if name != plain]
    if not mechanisms:
        raise ValueError(f"`results` must have at least one mechanism besides {plain!r}, got {list(results)}")
    for name, result in results.items():
        dice = result.get("dice")
        if dice is None or len(dice) == 0 or None in dice:
            raise ValueError(f"`results` must have a number as 'dice' for each seed of {name!r}, got {dice!r}")
    means = {name: sum(result["dice"]) / len(result["dice"]) for name, result in results.items()}
    mechanisms.sort(key=means.__getitem__)

    figure = Figure(figsize=(7.2, 1.7 + 0.42 * len(mechanisms)), layout="constrained")
    axes = figure.subplots()
    if plain in results:
        low, high = confidence_interval(results[plain]["dice"])
        if math.isfinite(low):
            axes.axvspan(low, high, color=INK, alpha=0.16, lw=0)
        axes.axvline(means[plain], color=INK, lw=1.4, label=f"plain network, {means[plain]:.3f}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, labelcolor=INK)
    for row, name in enumerate(mechanisms):
        values = results[name]["dice"]
        low, high = confidence_interval(values)
        if math.isfinite(low):
            axes.plot([low, high], [row, row], color=COLORS[6], lw=2.4, solid_capstyle="butt")
        axes.plot(values, [row - 0.2] * len(values), "o", color=COLORS[0], ms=4.5, mec="none")
        axes.plot(means[name], row, "D", color=COLORS[6], ms=7)
    labels = [f"{verbatim(name)}  {_more(results, name, plain)}" for name in mechanisms]
    axes.set_yticks(range(len(mechanisms)), labels)
    axes.set(ylim=(-0.6, len(mechanisms) - 0.4))
    seeds = sorted({len(result["dice"]) for result in results.values()})
    counted = "seed" if seeds == [1] else "seeds"
    words = f"{score}: {' or '.join(map(str, seeds))} {counted}, mean and 95 % confidence interval"
    more = "parameters added" if plain in results else "parameters"
    axes.set_xlabel(f"{words}\nin brackets: {more}", color=INK)
    _style(axes, grid="x")
    if title:
        heading = wrapped(title, figure.get_figwidth(), 12)
        figure.suptitle(heading, color=INK, fontsize=12)
        figure.set_figheight(figure.get_figheight() + 0.2 * heading.count("\n"))
    return figure


def plot_training(epochs: Sequence[Mapping[str, float | None]]) -> Figure:
    """Plots loss, learning rate and the scores on the held-out cases by epoch.

    Args:
        epochs: the rows of ``metrics.csv`` as numbers: "epoch", "loss", "learning_rate" and, for epochs with a
            validation, "dice" and "dice <label>". Missing values are None or have no key.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    loss, rate, dice = figure.subplots(1, 3)
    _line(loss, epochs, "loss", color=COLORS[6])
    _line(rate, epochs, "learning_rate", color=COLORS[2])
    names = [key for key in dict.fromkeys(key for row in epochs for key in row) if key.startswith("dice ")]
    for index, name in enumerate(names):
        _line(dice, epochs, name, color=color_of(index), label=name.removeprefix("dice "), lw=1.3)
    _line(dice, epochs, "dice", color=INK, label="mean", lw=2.4)
    for axes, title in ((loss, "Loss"), (rate, "Learning rate"), (dice, "Dice of the held-out cases")):
        axes.set_title(title, color=INK, fontsize=11, loc="left")
        axes.set_xlabel("epoch", color=INK)
        _style(axes)
    rate.yaxis.set_major_formatter("{x:g}")
    loss.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    dice.set_ylim(0, 1)
    lines = legend_below(figure, dice.lines, INK, 9)
    figure.set_figheight(figure.get_figheight() + 9 * LINE * lines)
    return figure


def plot_calibration(reliability: Sequence[Mapping[str, float | None]]) -> Figure:
    """Plots a reliability diagram: the accuracy and the number of voxels for each range of confidence.

    Args:
        reliability: bins of equal width from 0 to 1, each with its ``"voxels"``, the mean of their ``"confidence"``
            and their ``"accuracy"``, both None where there are no voxels.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: if there is no bin.
    """
    from matplotlib.figure import Figure

    if len(reliability) == 0:
        raise ValueError(f"`reliability` must have at least one bin, got {reliability!r}")
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    middles = [(index + 0.5) / len(reliability) for index in range(len(reliability))]
    points = [(row["confidence"], row["accuracy"]) for row in reliability if row["voxels"]]
    diagram.plot([0, 1], [0, 1], color=INK, lw=1.2, ls="--", label="perfect calibration")
    if points:
        diagram.plot(*zip(*points, strict=True), "o-", color=COLORS[6], ms=5, label="network")
    diagram.set(xlim=(0, 1), ylim=(0, 1))
    diagram.set_ylabel("accuracy", color=INK)
    diagram.legend(frameon=False, labelcolor=INK)
    counts.bar(middles, [row["voxels"] for row in reliability], 0.9 / len(reliability), color=COLORS[0])
    counts.set_xlabel("confidence: highest probability of a voxel", color=INK)
    counts.set_ylabel("voxels", color=INK)
    for axes in (diagram, counts):
        _style(axes)
    return figure


def _line(axes: Axes, epochs: Sequence[Mapping[str, float | None]], key: str, **style: Any) -> None:
    """Draws a curve through the epochs that have a value, with markers if there are few."""
    points = [(row["epoch"], row[key]) for row in epochs if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else "", ms=3.5, **style)


def _more(results: Mapping[str, Mapping[str, Any]], name: str, plain: str) -> str:
    """Returns the number of parameters that a mechanism adds, as text."""
    if plain not in results:
        return f"({results[name]['parameters']:,})"
    return f"({results[name]['parameters'] - results[plain]['parameters']:+,})"


def _style(axes: Axes, grid: Literal["x", "both"] = "both") -> None:
    """Styles axes with a transparent background, few lines, and a faint grid."""
    axes.patch.set_alpha(0)
    axes.figure.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis=grid, color=INK, alpha=0.18)
