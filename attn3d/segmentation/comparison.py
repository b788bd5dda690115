"""The command ``compare``: compares mechanisms with no attention at the same budget."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from attn3d.arguments import one_of, positive_integer
from attn3d.mechanisms.registry import list_attention
from attn3d.planning import estimate_memory
from attn3d.plotting import confidence_interval, plot_comparison
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import find_dataset, named_splits, read_fold, split_cases
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.io.writing import finished_file, read_json, read_table, write_json, write_table
from attn3d.segmentation.networks import create_network
from attn3d.segmentation.runs import SPLITS, Run
from attn3d.segmentation.series import series_in, train_or_resume
from attn3d.segmentation.settings import Settings, settings_from
from attn3d.segmentation.summaries import mean_dice

_LEVEL = 0.95
_ENOUGH = 3  # the fewest seeds for a statement; an interval of two paired differences is often short by chance


def compare(
    data: Path | str | None = None,
    *,
    out: Path | str,
    mechanisms: Sequence[str],
    seeds: int = 5,
    config: Path | str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Trains the same network without attention and with each mechanism, with several seeds, and compares the Dice.

    All trainings have the same data, split, settings and budget of epochs or minutes. A seed sets the weights and
    patches and is used for every mechanism, so that differences are paired by seed. Each training is a run folder in
    ``out``. Finished runs are not trained again, and stopped runs are continued. The split is drawn once and written to
    ``splits.json``: cases that are added to the data set later are not used.

    The difference to the network without attention is the mean over the seeds, with its 95 % confidence interval
    (Student's t, of the paired differences). If the interval contains 0, the difference is inside the noise; fewer than
    three seeds are not enough to say this. With several mechanisms, one in twenty intervals does not contain 0 by
    chance alone.

    Args:
        data: as in `train`; without it, a simulated cohort is written into ``out``. The folder may have been moved
            since the comparison began.
        out: the folder of the comparison.
        mechanisms: names of mechanisms; the network without attention is always added, as "none".
        seeds: number of trainings per mechanism, with the seeds 0, 1, ..
        config: as in `train`, without ``seed`` and ``attention``.
        workers: as in `train`.
        quiet: whether to show no progress bars.
        **settings: as in `train`, without ``seed`` and ``attention``. They are the same for all trainings; ``at`` are
            the sites of all mechanisms.

    Returns:
        The content of ``comparison.json``. For each mechanism it has ``dice`` (mean over the labels, for each seed),
        ``mean``, ``interval``, ``difference`` and ``difference_interval`` to the network without attention,
        ``inside_noise`` (None for fewer than three seeds), ``parameters``, ``seconds``, the median time of a training,
        and ``memory_bytes``, the estimated memory of a training step. ``comparison.csv`` and ``comparison.png`` are
        written too.

    Raises:
        FileError: when a file cannot be used, the data set lacks a case of the split, or ``out`` has a comparison with
            other settings.
        TypeError: when ``mechanisms`` is not a list.
        ValueError: when a mechanism or setting is wrong, a mechanism does not fit the network, or ``out`` is in use.
    """
    positive_integer("seeds", seeds)
    out, chosen = Path(out), settings_from(config, settings)
    for name, instead in (("seed", "seeds"), ("attention", "mechanisms")):
        if name in chosen.model_fields_set:
            problem = f"`{name}` is set by the comparison, got {getattr(chosen, name)!r}; use `{instead}`"
            raise ValueError(problem) if config is None or name in settings else FileError(config, problem)
    if isinstance(mechanisms, str):
        raise TypeError(f"`mechanisms` must be a list of names, such as [{mechanisms!r}], got {mechanisms!r}")
    mechanisms = list(mechanisms)
    for mechanism in mechanisms:
        one_of("mechanisms", mechanism, list_attention())
    asked = {"settings": chosen.model_dump(mode="json")}
    with series_in(out, data, asked, lambda folder: _split(folder, chosen), quiet) as folder:
        runs: dict[str, list[Run]] = {mechanism: [] for mechanism in ("none", *dict.fromkeys(mechanisms))}
        if mechanisms and not (out / "none-0" / "config.json").exists():
            _check_mechanisms(folder, out / SPLITS, chosen, mechanisms, quiet)
        for seed in range(seeds):
            for mechanism, finished in runs.items():
                if not quiet:
                    print(f"{mechanism}, seed {seed}")
                options = {"config": config, "folds": out / SPLITS, **settings, "attention": mechanism, "seed": seed}
                finished.append(train_or_resume(folder, out / f"{mechanism}-{seed}", workers, quiet, **options))
        return _report(out, runs, chosen.at, seeds)


def _split(data: Path | str, settings: Settings) -> list[dict[str, list[str]]]:
    """The names of the training and validation cases."""
    dataset = find_dataset(data, labelled=True)
    return named_splits([split_cases(dataset.cases, settings.held_out, settings.split_seed, dataset.validation)])


def _check_mechanisms(
    data: Path | str, splits: Path, settings: Settings, mechanisms: Sequence[str], quiet: bool
) -> None:
    """Builds the network with each mechanism, since one that does not fit would be found after the plain training.

    The network depends on the training cases, which are read for this.
    """
    dataset = find_dataset(data, labelled=True)
    training, _ = read_fold(splits, 0, dataset.cases)
    images = dataset.images_per_case()
    config = configure(dataset, images, take_fingerprint(dataset, training, quiet=quiet), settings)
    for mechanism in mechanisms:
        create_network(config.network, **config.network_shape, attention=mechanism, at=settings.at)


def _report(out: Path, runs: dict[str, list[Run]], at: Sequence[str], seeds: int) -> dict[str, Any]:
    """Compares the scores of the runs and writes the results."""
    results = {mechanism: _measure(of) for mechanism, of in runs.items()}
    plain = results["none"]["dice"]
    for mechanism, result in results.items():
        result["mean"], result["interval"] = _mean_and_interval(result["dice"])
        if mechanism != "none":
            differences = [one - other for one, other in zip(result["dice"], plain, strict=True)]
            result["difference"], interval = _mean_and_interval(differences)
            result["difference_interval"] = interval
            result["inside_noise"] = interval[0] <= 0 <= interval[1] if interval and seeds >= _ENOUGH else None
    simulated = runs["none"][0].config.simulated
    report = {"simulated": simulated, "at": list(at), "seeds": seeds, "level": _LEVEL, "mechanisms": results}
    write_json(out / "comparison.json", report)
    rows = [{"mechanism": mechanism, **result} for mechanism, result in results.items()]
    write_table(out / "comparison.csv", pd.DataFrame(rows, dtype=object))
    if len(results) > 1:
        title = f"{runs['none'][0].config.network}, attention at {', '.join(at)}"
        figure = plot_comparison(results, title=title + (" (simulated scans)" if simulated else ""))
        with finished_file(out / "comparison.png") as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")
    return report


def _measure(runs: Sequence[Run]) -> dict[str, Any]:
    """The Dice of all seeds of a mechanism, and its costs."""
    net, config = runs[0].new_network(), runs[0].config
    shape = (config.batch_size, config.in_channels, *config.patch_size)
    dice = [mean_dice(read_json(run.scores, "overall")) for run in runs]
    if None in dice:
        raise FileError(runs[0].scores, "no held-out case has a label; hold out more cases (held_out)")
    return {
        "dice": dice,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "seconds": median(float(read_table(run.folder / "metrics.csv")["seconds"].iloc[-1]) for run in runs),
        "memory_bytes": estimate_memory(net, shape, training=True),
    }


def _mean_and_interval(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean over the seeds and its confidence interval; None for a single seed."""
    return float(np.mean(values)), list(confidence_interval(values, _LEVEL)) if len(values) > 1 else None
