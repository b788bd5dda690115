"""Allows only one process at a time in a folder. The operating system releases the lock if the process ends."""

import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attn3d.segmentation.io.writing import sweep

LOCK = ".lock"


@contextmanager
def locked(folder: Path | str, parts: Collection[str] = (), *, wait: bool = False) -> Iterator[None]:
    """Locks a folder for this process. Unfinished files of processes that have ended are removed first.

    The folder is created if it does not exist, and removed at the end if it was created here and is still empty.

    Args:
        folder: the folder to write to.
        parts: folders inside it, in which unfinished files are removed too.
        wait: whether to wait until another process releases the lock, instead of raising an error.

    Raises:
        ValueError: when another process has locked the folder.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        owner = "another process"
        with suppress(OSError):  # it may just have ended
            owner = file.read_text(encoding="utf-8").strip() or owner
        raise ValueError(f"`out` {folder} is in use by {owner}; wait for it, or give another folder") from error
    try:
        with suppress(OSError):  # on a full disk the process is not named; the next file raises the error
            file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        for part in ("", *parts):
            sweep(folder / part, alone=not wait)
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # it usually has files
                folder.rmdir()
