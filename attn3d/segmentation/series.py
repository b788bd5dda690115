"""Several trainings in one folder, with the same settings, that can be stopped and continued."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.locks import LOCK, locked
from attn3d.segmentation.io.writing import read_json, write_json
from attn3d.segmentation.runs import SPLITS, Run
from attn3d.segmentation.simulation import simulate
from attn3d.segmentation.training import Interrupted, train


@contextmanager
def series_in(
    out: Path, data: Path | str | None, settings: Mapping[str, Any], splits: Callable[[Path | str], Any], quiet: bool
) -> Iterator[Path | str]:
    """Begins or continues a series of trainings in a folder, which it locks. Yields the folder of the data set.

    The folder gets ``settings.json`` and ``splits.json``. The splits are drawn once, from data that are checked before
    anything is written. Without data, a simulated cohort is written into the folder.

    Args:
        out: the folder of the series.
        data: the folder of the data set, or None.
        settings: the settings of the user.
        splits: the splits of the data set in a folder.
        quiet: whether to show no progress bar.

    Raises:
        FileError: when the folder has a series with other settings.
        ValueError: when the folder has other content, or is in use.
    """
    asked = {"data": None if data is None else str(Path(data).resolve()), **settings}
    drawn = None if data is None else splits(data)
    with locked(out):
        begun = _keep_settings(out / "settings.json", asked)
        if data is None:
            data = simulate(out / "cohort", quiet=quiet).folder
            drawn = splits(data)
        if not begun:
            write_json(out / SPLITS, drawn)
        yield data


def _keep_settings(path: Path, settings: Mapping[str, Any]) -> bool:
    """Writes the settings of a series of trainings, or checks that they equal those of the series in the folder.

    The data set may have been moved. The settings can be changed as long as the folder has no run.

    Args:
        path: the file of the settings.
        settings: the settings of the user, with the folder of the data set as ``"data"``.

    Returns:
        Whether the folder has a run of the series.

    Raises:
        FileError: when the folder has a series with other settings.
        ValueError: when the folder has other content.
    """
    asked = json.loads(json.dumps(settings))
    begun = any(path.parent.glob("*/config.json"))
    if path.exists() and begun:
        there = read_json(path, *asked)
        moved = there["data"] is not None and asked["data"] is not None and not Path(there["data"]).exists()
        if there != asked | ({"data": there["data"]} if moved else {}):
            raise FileError(path, "has other settings; give another --out")
    elif not path.exists() and (others := sorted({other.name for other in path.parent.iterdir()} - {LOCK})):
        raise ValueError(f"`out` {path.parent} already has {others[0]!r}; move it, or give a new folder")
    else:
        write_json(path, asked)
    return begun


def train_or_resume(data: Path | str, folder: Path, workers: int | None, quiet: bool, **settings: Any) -> Run:
    """Trains a run of a series on one device. A stopped run is continued, and a finished run is not trained again.

    Several devices would start this process again, and each of the processes would go through the whole series.

    Raises:
        Interrupted: when the training is stopped by Ctrl-C.
    """
    if (folder / "config.json").exists():
        settings = {"resume": True}
    try:
        return train(data, out=folder, devices=1, workers=workers, quiet=quiet, **settings)
    except Interrupted as stopped:
        raise Interrupted("stopped; run the same command again to continue") from stopped
