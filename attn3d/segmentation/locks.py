"""One process at a time in a folder, by the lock of the operating system, which ends with its owner."""

import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attn3d.segmentation.writing import sweep

LOCK = ".lock"


@contextmanager
def locked(folder: Path | str, parts: Collection[str] = (), *, wait: bool = False) -> Iterator[None]:
    """Owns a folder, which is made if it is not there; if it is still empty in the end, it is removed again.

    What processes that died left unfinished in it is removed first.

    Args:
        folder: that is written to.
        parts: folders in it that are owned with it.
        wait: for another owner to finish, rather than refuse.

    Raises:
        ValueError: when another process owns it.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        owner = file.read_text(encoding="utf-8").strip() or "another process"
        raise ValueError(f"`out` {folder} is in use by {owner}; wait for it, or give another folder") from error
    try:
        with suppress(OSError):  # on a full disk the owner has no name; what is to be written says so
            file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        for part in ("", *parts):
            sweep(folder / part, alone=not wait)
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # it is not empty, as it should be
                folder.rmdir()
