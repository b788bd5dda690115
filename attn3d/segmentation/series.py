"""Several trainings in one folder: they are begun together, and go on where they were stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.locks import LOCK
from attn3d.segmentation.runs import Run
from attn3d.segmentation.training import train
from attn3d.segmentation.writing import read_json, write_json


def keep_settings(path: Path, settings: Mapping[str, Any]) -> bool:
    """Writes what a series is started with, or checks that it is what the series in the folder was started with.

    The data set may have been moved since. As long as there is no run, the settings can still be changed.

    Args:
        path: of the file.
        settings: what the user asked for, with the data set's folder as ``"data"``.

    Returns:
        Whether the folder has a run of the series.

    Raises:
        FileError: when the folder holds a series with other settings.
        ValueError: when the folder holds anything else.
    """
    asked = json.loads(json.dumps(settings))
    begun = any(path.parent.glob("*/config.json"))
    if path.exists() and begun:
        there = read_json(path, *asked)
        moved = there["data"] is not None and asked["data"] is not None and not Path(there["data"]).exists()
        if there != asked | ({"data": there["data"]} if moved else {}):
            raise FileError(path, "this folder was made with other settings; give another --out")
    elif not path.exists() and any(other.name != LOCK for other in path.parent.iterdir()):
        raise ValueError(f"`out` {path.parent} is in use; give a new folder")
    else:
        write_json(path, asked)
    return begun


def train_or_resume(data: Path | str, folder: Path, workers: int | None, quiet: bool, **settings: Any) -> Run:
    """Trains a run of a series; a run that is finished is taken as it is, and one that was stopped goes on."""
    if (folder / "config.json").exists():
        return train(data, out=folder, resume=True, workers=workers, quiet=quiet)
    return train(data, out=folder, workers=workers, quiet=quiet, **settings)
