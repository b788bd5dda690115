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

    The folder gets ``settings.json`` and ``splits.json``. The splits are drawn before the first training, and before
    anything is written if there are data. Without data, a simulated cohort is written into the folder.

    Raises:
        FileError: when the folder has a series with other settings, or trainings without their splits.
        ValueError: when the folder has other content, or is in use.
    """
    asked = {"data": None if data is None else str(Path(data).resolve()), **settings}
    drawn = None if data is None or _has_runs(out) else splits(data)
    with locked(out):
        _keep_settings(out / "settings.json", asked)
        if data is None:
            data = simulate(out / "cohort", quiet=quiet).folder
        if not _has_runs(out):
            write_json(out / SPLITS, splits(data) if drawn is None else drawn)
        elif not (out / SPLITS).exists():
            raise FileError(out / SPLITS, "was removed; give another --out")
        yield data


def _has_runs(folder: Path) -> bool:
    return any(folder.glob("*/config.json"))


def _keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a series of trainings, or checks that they equal those of the series in the folder.

    The data set may have been moved. The settings can be changed as long as the folder has no run.
    """
    asked = json.loads(json.dumps(settings))
    if path.exists() and _has_runs(path.parent):
        there = read_json(path, *asked)
        if not (isinstance(there["settings"], dict) and isinstance(there["data"], str | None)):
            raise FileError(path, "was changed: its 'settings' or 'data' are not as written; give another --out")
        if there["data"] is not None and asked["data"] is not None and not Path(there["data"]).exists():
            asked["data"] = there["data"]  # the data set was moved
        there, asked = ({**one.pop("settings"), **one} for one in (there, asked))
        if other := [name for name in {**asked, **there} if there.get(name) != asked.get(name)]:
            raise FileError(path, f"has other settings ({', '.join(other)}); give another --out")
    elif not path.exists() and (others := sorted({other.name for other in path.parent.iterdir()} - {LOCK})):
        raise ValueError(f"`out` {path.parent} already has {others[0]!r}; move it, or give a new folder")
    else:
        write_json(path, asked)


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
